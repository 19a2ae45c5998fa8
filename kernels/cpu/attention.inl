// Paged causal attention with an online softmax, by segments of positions. The meaning is one query row at a time over
// blocks in order; the cut into tasks cannot be seen in the bits.

namespace {

using namespace tinycluster;

constexpr float LOWEST = -3.402823466e38f;

// Which positions the rows of a task see, and where the rows lie.
struct RowSpans {
  int rows;
  int64_t at[ATTENTION_ROWS];  // of q and out
  int64_t first[ATTENTION_ROWS], last[ATTENTION_ROWS];

  int64_t last_of_all() const { return last[rows - 1]; }
  int64_t first_segment(int r) const { return first[r] / SEGMENT; }
  bool sees(int r, int64_t segment) const { return first_segment(r) <= segment && segment <= last[r] / SEGMENT; }
};

RowSpans spans_of(const AttentionArgs& a, const AttentionTask& task) {
  RowSpans spans;
  spans.rows = int(task.num_items);
  int64_t token = a.step->row_start[task.request] + task.first_item / task.heads.num_heads;
  int64_t head = task.first_item % task.heads.num_heads;
  for (int r = 0; r < spans.rows; ++r) {
    spans.at[r] = (token * a.H + task.heads.first_head + head) * a.cache->C;
    spans.last[r] = a.step->positions[token];
    spans.first[r] = first_visible(spans.last[r], a.window);
    if (++head == task.heads.num_heads) head = 0, ++token;
  }
  return spans;
}

// What the rows of a task found in one segment, or in the segments so far.
struct RowSums {
  float *most, *sum;  // (rows,), of whole vectors
  float* out;         // (rows, padded C)
};

// The segments of a row are merged in order.
void merge(const RowSpans& spans, int64_t segment, int64_t padded_C, const RowSums& whole, const RowSums& part) {
  alignas(64) float most[ATTENTION_ROWS], mine[ATTENTION_ROWS], its[ATTENTION_ROWS];
  for (int r = 0; r < spans.rows; r += LANES) {
    const F32x16 now = max(load(whole.most + r), load(part.most + r));
    F32x16 shrink[] = {sub(load(whole.most + r), now), sub(load(part.most + r), now)};
    exp(shrink);
    store(most + r, now), store(mine + r, shrink[0]), store(its + r, shrink[1]);
  }
  for (int r = 0; r < spans.rows; ++r) {
    if (!spans.sees(r, segment)) continue;
    float* const out = whole.out + r * padded_C;
    const float* const part_out = part.out + r * padded_C;
    if (segment == spans.first_segment(r)) {
      whole.most[r] = part.most[r], whole.sum[r] = part.sum[r];
      std::memcpy(out, part_out, size_t(padded_C) * sizeof(float));
      continue;
    }
    whole.most[r] = most[r];
    whole.sum[r] = std::fma(whole.sum[r], mine[r], part.sum[r] * its[r]);
    for (int64_t c = 0; c < padded_C; c += LANES)
      store(out + c, fma(load(out + c), set1(mine[r]), mul(load(part_out + c), set1(its[r]))));
  }
}

// One block of positions for the rows that see some of it.
template <class Codes>
void attend_block(const KVCache& cache, AttentionRows& s, const KVBlock& block, const KVBlock& next, int rows,
                  int num_positions, WideBlock& wide) {
  int begin = 0, end = rows;
  while (begin < end && s.j0[begin] > s.j1[begin]) ++begin;
  while (begin < end && s.j0[end - 1] > s.j1[end - 1]) --end;
  const StoredBlock<Codes> stored = {block, next, s.C, s.padded_C};
  if (end - begin <= MOST_ROWS) {
    in_groups(begin, end, [&](auto group, int r0) { score(group, s, stored, r0); });
    soften(s, rows, begin, end);
    in_groups(begin, end, [&](auto group, int r0) { add_values(group, s, stored, r0); });
    return;
  }
  // Where all rows see all of the block, the first ones leave its numbers to the others.
  const bool is_whole = s.j0[end - 1] == 0 && s.j1[begin] == BLOCK - 1;
  const OpenedBlock<Codes> opened = {stored, wide};
  const auto first_or_other = [&](auto group, int r0, const auto& body) {
    if constexpr (group.COUNT >= std::min(MOST_ROWS, 4))
      if (is_whole && r0 == begin) return body(opened);
    body(wide);
  };
  const int num_groups = (end - begin + MOST_ROWS - 1) / MOST_ROWS;
  int done = 0;
  if (!is_whole) wide.unpack_keys<Codes>(block, num_positions);
  in_groups(begin, end, [&](auto group, int r0) {
    wide.look_ahead(next.k, cache.key_tile_bytes() / s.C, done++, num_groups);
    first_or_other(group, r0, [&](auto& from) { score(group, s, from, r0); });
  });
  soften(s, rows, begin, end);
  done = 0;
  if (!is_whole) wide.unpack_values<Codes>(block, num_positions);
  in_groups(begin, end, [&](auto group, int r0) {
    wide.look_ahead(next.v, cache.value_tile_bytes() / s.padded_C, done++, num_groups);
    first_or_other(group, r0, [&](auto& from) { add_values(group, s, from, r0); });
  });
}

// The blocks of one segment, from fresh sums.
template <class Codes>
void attend_segment(const AttentionArgs& a, const AttentionTask& task, const RowSpans& spans, int64_t segment,
                    AttentionRows& s, WideBlock& wide) {
  for (int64_t r = 0; r < padded_rows(spans.rows); ++r) s.most[r] = LOWEST, s.sum[r] = 0.0f;
  std::memset(s.out, 0, size_t(spans.rows * s.padded_C) * sizeof(float));
  const int32_t* table = a.step->block_tables + task.request * a.step->block_table_stride;
  const int64_t last = std::min((segment + 1) * SEGMENT - 1, spans.last_of_all());
  const auto find = [&](int64_t from) {
    return find_block(*a.cache, table, task.heads.kv_head, from, spans.last_of_all());
  };
  int64_t start = std::max(spans.first[0], segment * SEGMENT) / BLOCK * BLOCK;
  for (KVBlock block = find(start), next; start <= last; start += BLOCK, block = next) {
    const int64_t end = std::min(start + BLOCK - 1, last);
    for (int r = 0; r < spans.rows; ++r) {
      s.j0[r] = int(std::max(spans.first[r], start) - start);
      s.j1[r] = int(std::min(spans.last[r], end) - start);
    }
    next = end < spans.last_of_all() ? find(start + BLOCK) : block;
    attend_block<Codes>(*a.cache, s, block, next, spans.rows, int(end + 1 - start), wide);
  }
}

// Where one segment of a split task is kept.
RowSums kept_part(const AttentionTask& task, int64_t padded_C, int64_t segment) {
  float* const part = task.parts + (segment - task.first_segment_of_all) * part_floats(task.num_items, padded_C);
  const int64_t lanes = padded_rows(task.num_items);
  return {part, part + lanes, part + 2 * lanes};
}

void keep(const RowSums& part, int64_t padded_C, int rows, const RowSums& kept) {
  std::memcpy(kept.most, part.most, size_t(padded_rows(rows)) * sizeof(float));
  std::memcpy(kept.sum, part.sum, size_t(padded_rows(rows)) * sizeof(float));
  std::memcpy(kept.out, part.out, size_t(rows * padded_C) * sizeof(float));
}

template <class Codes>
void attend(const AttentionArgs& a, const AttentionTask& task) {
  AttentionRows s;
  WideBlock wide;
  alignas(64) float most[ATTENTION_ROWS], sum[ATTENTION_ROWS], out[ATTENTION_ROWS * MOST_HEAD_DIM];
  const RowSums whole = {most, sum, out}, part = {s.most, s.sum, s.out};
  const int64_t C = a.cache->C, padded_C = a.cache->padded_C();
  s.C = wide.C = C, s.padded_C = wide.padded_C = padded_C, s.scale = a.scale;
  const RowSpans spans = spans_of(a, task);
  for (int r = 0; r < spans.rows; ++r) std::memcpy(s.q + r * C, a.q + spans.at[r], size_t(C) * sizeof(float));
  for (int64_t r = 0; r < padded_rows(spans.rows); ++r) most[r] = LOWEST;
  for (int64_t segment = task.first_segment; segment < task.end_segment; ++segment) {
    attend_segment<Codes>(a, task, spans, segment, s, wide);
    if (task.parts) {
      keep(part, padded_C, spans.rows, kept_part(task, padded_C, segment));
    } else {
      merge(spans, segment, padded_C, whole, part);
    }
  }
  if (task.parts) {
    // Whoever finishes last merges, in the order of the segments, and leaves the count as the next layer needs it.
    if (__atomic_sub_fetch(task.unfinished, 1, __ATOMIC_ACQ_REL) > 0) return;
    __atomic_store_n(task.unfinished, task.num_tasks, __ATOMIC_RELAXED);
    for (int64_t segment = task.first_segment_of_all; segment <= spans.last_of_all() / SEGMENT; ++segment)
      merge(spans, segment, padded_C, whole, kept_part(task, padded_C, segment));
  }
  for (int r = 0; r < spans.rows; ++r)
    for (int64_t c = 0; c < C; c += LANES)
      store_first(a.out + spans.at[r] + c, div(load(out + r * padded_C + c), set1(sum[r])), int(C - c));
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
