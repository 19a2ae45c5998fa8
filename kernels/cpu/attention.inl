// Paged causal attention with an online softmax, by segments of positions. The meaning is one query row at a time over
// blocks in order; the cut into tasks cannot be seen in the bits.

namespace {

using namespace tinycluster;

// Which positions the rows of a task see, and where the rows lie.
struct RowSpans {
  int rows;
  int64_t at[ATTENTION_ROWS];  // of q and out
  int64_t first[ATTENTION_ROWS], last[ATTENTION_ROWS];

  int64_t last_of_all() const { return last[rows - 1]; }
  bool sees(int r, int64_t segment) const { return first[r] / SEGMENT <= segment && segment <= last[r] / SEGMENT; }
};

RowSpans spans_of(const AttentionArgs& a, const AttentionTask& task) {
  RowSpans spans;
  spans.rows = int(task.num_items);
  for (int r = 0; r < spans.rows; ++r) {
    const int64_t item = task.first_item + r, head = task.heads.first_head + item % task.heads.num_heads;
    const int64_t token = a.step->row_start[task.request] + item / task.heads.num_heads;
    spans.at[r] = (token * a.H + head) * a.cache->C;
    spans.last[r] = a.step->positions[token];
    spans.first[r] = first_visible(spans.last[r], a.window);
  }
  return spans;
}

// Rows of the segments so far; the segments of a row are merged in order.
struct MergedRows {
  alignas(64) float out[ATTENTION_ROWS * MOST_HEAD_DIM];  // (rows, padded C)
  float most[ATTENTION_ROWS], sum[ATTENTION_ROWS];

  // A segment's most, sum and out (padded C,) of a row.
  void add(int row, bool is_first, float other_most, float other_sum, const float* other_out, int64_t padded_C) {
    float* const mine = out + row * padded_C;
    if (is_first) {
      most[row] = other_most, sum[row] = other_sum;
      std::memcpy(mine, other_out, size_t(padded_C) * sizeof(float));
      return;
    }
    const float now = most[row] > other_most ? most[row] : other_most;
    const F32x16 shrink = exp(set1(most[row] - now)), other_shrink = exp(set1(other_most - now));
    most[row] = now;
    sum[row] = std::fma(sum[row], first_lane(shrink), other_sum * first_lane(other_shrink));
    for (int64_t c = 0; c < padded_C; c += LANES)
      store(mine + c, fma(load(mine + c), shrink, mul(load(other_out + c), other_shrink)));
  }
};

// The blocks of one segment, from fresh sums.
template <class Codes>
void attend_segment(const AttentionArgs& a, const AttentionTask& task, const RowSpans& spans, int64_t segment,
                    AttentionRows& s, UnpackedBlock& unpacked) {
  for (int r = 0; r < spans.rows; ++r) s.most[r] = LOWEST, s.sum[r] = 0.0f;
  std::memset(s.out, 0, size_t(spans.rows * s.padded_C) * sizeof(float));
  const int32_t* table = a.step->block_tables + task.request * a.step->block_table_stride;
  const int64_t segment_last = (segment + 1) * SEGMENT - 1;
  const int64_t last = segment_last < spans.last_of_all() ? segment_last : spans.last_of_all();
  int64_t start = (spans.first[0] > segment * SEGMENT ? spans.first[0] : segment * SEGMENT) / BLOCK * BLOCK;
  const auto find = [&](int64_t from) {
    return find_block(*a.cache, table, task.heads.kv_head, from, spans.last_of_all());
  };
  for (KVBlock block = find(start), next; start <= last; start += BLOCK, block = next) {
    const int64_t end = start + BLOCK - 1 < last ? start + BLOCK - 1 : last;
    for (int r = 0; r < spans.rows; ++r) {
      s.j0[r] = int((spans.first[r] > start ? spans.first[r] : start) - start);
      s.j1[r] = int((spans.last[r] < end ? spans.last[r] : end) - start);
    }
    next = end < spans.last_of_all() ? find(start + BLOCK) : block;
    if (Codes::IS_F32 || spans.rows <= MOST_ROWS) {
      attend_block<Codes>(s, block, next, spans.rows);
    } else {
      const KVBlock wide = unpack<Codes>(s, block, end + 1 - start, unpacked);
      attend_block<F32Codes>(s, wide, wide, spans.rows);
    }
  }
}

// What one segment found for each row of a split task: out (padded C,), most, sum.
float* part_of(const AttentionTask& task, int64_t padded_C, int rows, int64_t segment, int row) {
  return task.parts + ((segment - task.first_segment_of_all) * rows + row) * (padded_C + LANES);
}

void keep_parts(const AttentionTask& task, const RowSpans& spans, int64_t segment, const AttentionRows& s) {
  for (int r = 0; r < spans.rows; ++r) {
    float* const part = part_of(task, s.padded_C, spans.rows, segment, r);
    std::memcpy(part, s.out + r * s.padded_C, size_t(s.padded_C) * sizeof(float));
    part[s.padded_C] = s.most[r], part[s.padded_C + 1] = s.sum[r];
  }
}

void merge_parts(const AttentionTask& task, const RowSpans& spans, int64_t padded_C, MergedRows& merged) {
  for (int r = 0; r < spans.rows; ++r)
    for (int64_t segment = spans.first[r] / SEGMENT; segment <= spans.last[r] / SEGMENT; ++segment) {
      const float* part = part_of(task, padded_C, spans.rows, segment, r);
      merged.add(r, segment == spans.first[r] / SEGMENT, part[padded_C], part[padded_C + 1], part, padded_C);
    }
}

template <class Codes>
void attend(const AttentionArgs& a, const AttentionTask& task) {
  AttentionRows s;
  UnpackedBlock unpacked;
  MergedRows merged;
  s.C = a.cache->C, s.padded_C = a.cache->padded_C(), s.scale = a.scale;
  const RowSpans spans = spans_of(a, task);
  for (int r = 0; r < spans.rows; ++r) std::memcpy(s.q[r], a.q + spans.at[r], size_t(s.C) * sizeof(float));
  for (int64_t segment = task.first_segment; segment < task.end_segment; ++segment) {
    attend_segment<Codes>(a, task, spans, segment, s, unpacked);
    if (task.parts) {
      keep_parts(task, spans, segment, s);
      continue;
    }
    for (int r = 0; r < spans.rows; ++r)
      if (spans.sees(r, segment))
        merged.add(r, segment == spans.first[r] / SEGMENT, s.most[r], s.sum[r], s.out + r * s.padded_C, s.padded_C);
  }
  if (task.parts) {
    // Whoever finishes last merges, in the order of the segments, and leaves the count as the next layer needs it.
    if (__atomic_sub_fetch(task.unfinished, 1, __ATOMIC_ACQ_REL) > 0) return;
    __atomic_store_n(task.unfinished, task.num_tasks, __ATOMIC_RELAXED);
    merge_parts(task, spans, s.padded_C, merged);
  }
  for (int r = 0; r < spans.rows; ++r)
    for (int64_t c = 0; c < s.C; c += LANES) {
      const F32x16 out = div(load(merged.out + r * s.padded_C + c), set1(merged.sum[r]));
      store_first(a.out + spans.at[r] + c, out, int(s.C - c));
    }
}

void attention(const AttentionArgs& a, const AttentionTask& task) {
  switch (a.cache->format) {
    case KVFormat::f32:
      return attend<F32Codes>(a, task);
    case KVFormat::bf16:
      return attend<Bf16Codes>(a, task);
    case KVFormat::q8:
      return attend<Q8Codes>(a, task);
  }
}

}  // namespace
