// Paged causal attention with an online softmax. The meaning is one query row at a time over blocks of 64 positions in
// order; several rows run together only where that cannot change a row's operations.

namespace {

using namespace tinycluster;

// 64 positions of one request and KV head, wherever the pages lie.
struct KVBlock {
  const float* k[BLOCK / LANES];  // (C, 16 positions) with stride block_tokens
  const float* v[BLOCK];          // (padded C,) per position
};

KVBlock find_block(const AttentionArgs& a, const AttentionTask& task, int64_t first, int64_t last) {
  KVBlock block = {};
  const int32_t* table = a.block_tables + task.request * a.block_table_stride;
  for (int64_t position = first; position <= last; ++position) {
    const int64_t page = int64_t(table[position / a.block_tokens]) * a.KV + task.kv_head,
                  at = position % a.block_tokens;
    if (position % LANES == 0) block.k[(position - first) / LANES] = a.k_cache + page * a.C * a.block_tokens + at;
    block.v[position - first] = a.v_cache + (page * a.block_tokens + at) * a.padded_C;
  }
  return block;
}

struct AttentionState {
  float most[ATTENTION_ROWS], sum[ATTENTION_ROWS];
  alignas(64) float weights[ATTENTION_ROWS][BLOCK];  // scores, then exp(score - most)
};

// weights[r][j] = scale * chain over c of q[r][c] * k[c][j], for R rows and the first `vectors` groups of 16 positions.
template <int R>
void score(const AttentionArgs& a, const KVBlock& block, const float* const* q, int vectors, AttentionState& s,
           int r0) {
  for (int v = 0; v < vectors; ++v) {
    F32x16 sum[R];
    for (int r = 0; r < R; ++r) sum[r] = set1(0.0f);
    const float* k = block.k[v];
    for (int64_t c = 0; c < a.C; ++c, k += a.block_tokens) {
      const F32x16 keys = load(k);
      for (int r = 0; r < R; ++r) sum[r] = fma(set1(q[r][c]), keys, sum[r]);
    }
    for (int r = 0; r < R; ++r) store(s.weights[r0 + r] + v * LANES, mul(sum[r], set1(a.scale)));
  }
}

// Turns the scores of positions j0 .. j1 into weights. Returns the factor by which older sums shrink.
float soften(AttentionState& s, int row, int j0, int j1) {
  const F32x16 lowest = set1(-3.402823466e38f);
  F32x16 vector[BLOCK / LANES], most = set1(s.most[row]);
  for (int v = 0; v < BLOCK / LANES; ++v) {
    const int begin = j0 - v * LANES < 0 ? 0 : j0 - v * LANES, end = j1 + 1 - v * LANES;
    vector[v] = lowest;
    if (begin < LANES && end > 0)
      vector[v] = keep_lanes(load(s.weights[row] + v * LANES), begin, end > LANES ? LANES : end, lowest);
    most = max(most, vector[v]);
  }
  const float now = max_lanes(most);
  F32x16 sums = set1(0.0f);
  for (int v = 0; v < BLOCK / LANES; ++v) {
    const F32x16 e = exp(sub(vector[v], set1(now)));
    store(s.weights[row] + v * LANES, e);
    sums = add(sums, e);
  }
  float shrink[LANES];
  store(shrink, exp(set1(s.most[row] - now)));
  s.most[row] = now;
  s.sum[row] = std::fma(s.sum[row], shrink[0], add_lanes(sums));
  return shrink[0];
}

// out[r] = out[r] * shrink[r], then the chain over positions j0 .. j1 of fma(weight, v, out), for columns [c, c + 16
// W).
template <int R, int W>
void add_values(const KVBlock& block, const AttentionState& s, int r0, int j0, int j1, const float* shrink,
                float* const* out, int64_t c) {
  F32x16 sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sum[r][w] = mul(load(out[r] + c + w * LANES), set1(shrink[r]));
  for (int j = j0; j <= j1; ++j) {
    F32x16 values[W];
    for (int w = 0; w < W; ++w) values[w] = load(block.v[j] + c + w * LANES);
    for (int r = 0; r < R; ++r) {
      const F32x16 weight = set1(s.weights[r0 + r][j]);
      for (int w = 0; w < W; ++w) sum[r][w] = fma(weight, values[w], sum[r][w]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) store(out[r] + c + w * LANES, sum[r][w]);
}

template <int R>
void add_all_values(const AttentionArgs& a, const KVBlock& block, const AttentionState& s, int r0, int j0, int j1,
                    const float* shrink, float* const* out) {
  int64_t c = 0;
  for (; c + 4 * LANES <= a.padded_C; c += 4 * LANES) add_values<R, 4>(block, s, r0, j0, j1, shrink, out, c);
  for (; c < a.padded_C; c += LANES) add_values<R, 1>(block, s, r0, j0, j1, shrink, out, c);
}

// One block of positions for rows r0 .. r0 + R - 1. j0[r] > j1[r] marks a row that sees nothing of the block.
template <int R>
void attend_rows(const AttentionArgs& a, const KVBlock& block, const float* const* q, const int* j0, const int* j1,
                 AttentionState& s, int r0, float* const* out) {
  int last = -1;
  bool is_same = true;
  for (int r = 0; r < R; ++r) {
    if (j0[r] <= j1[r] && j1[r] > last) last = j1[r];
    is_same &= j0[r] == j0[0] && j1[r] == j1[0];
  }
  if (last < 0) return;
  score<R>(a, block, q, last / LANES + 1, s, r0);
  float shrink[R];
  for (int r = 0; r < R; ++r)
    if (j0[r] <= j1[r]) shrink[r] = soften(s, r0 + r, j0[r], j1[r]);
  if (is_same) return add_all_values<R>(a, block, s, r0, j0[0], j1[0], shrink, out);
  for (int r = 0; r < R; ++r)
    if (j0[r] <= j1[r]) add_all_values<1>(a, block, s, r0 + r, j0[r], j1[r], shrink + r, out + r);
}

constexpr int MOST_HEAD_DIM = 256;

void attention(const AttentionArgs& a, const AttentionTask& task) {
  AttentionState s;
  alignas(64) float sums[ATTENTION_ROWS][MOST_HEAD_DIM];
  const float* q[ATTENTION_ROWS];
  float* out[ATTENTION_ROWS];
  int64_t at[ATTENTION_ROWS], first[ATTENTION_ROWS], last[ATTENTION_ROWS];
  const int rows = int(task.num_items);
  for (int r = 0; r < rows; ++r) {
    const int64_t item = task.first_item + r, token = task.first_token + item / task.num_heads;
    at[r] = (token * a.H + task.first_head + item % task.num_heads) * a.C;
    last[r] = a.positions[token];
    first[r] = last[r] + 1 > a.window ? last[r] + 1 - a.window : 0;
    q[r] = a.q + at[r];
    out[r] = sums[r];
    s.most[r] = -3.402823466e38f;
    s.sum[r] = 0.0f;
    std::memset(sums[r], 0, a.padded_C * sizeof(float));
  }
  for (int64_t start = first[0] / BLOCK * BLOCK; start <= last[rows - 1]; start += BLOCK) {
    const int64_t end = start + BLOCK - 1 < last[rows - 1] ? start + BLOCK - 1 : last[rows - 1];
    const KVBlock block = find_block(a, task, start, end);
    int j0[ATTENTION_ROWS], j1[ATTENTION_ROWS];
    for (int r = 0; r < rows; ++r) {
      j0[r] = int((first[r] > start ? first[r] : start) - start);
      j1[r] = int((last[r] < end ? last[r] : end) - start);
    }
    int r = 0;
    if constexpr (MOST_SUMS > 1) {
      for (; r + 4 <= rows; r += 4) attend_rows<4>(a, block, q + r, j0 + r, j1 + r, s, r, out + r);
      for (; r + 2 <= rows; r += 2) attend_rows<2>(a, block, q + r, j0 + r, j1 + r, s, r, out + r);
    }
    for (; r < rows; ++r) attend_rows<1>(a, block, q + r, j0 + r, j1 + r, s, r, out + r);
  }
  for (int r = 0; r < rows; ++r)
    for (int64_t c = 0; c < a.C; c += LANES) {
      const int n = int(a.C - c);
      store_first(a.out + at[r] + c, div(load(sums[r] + c), set1(s.sum[r])), n);
    }
}

}  // namespace
