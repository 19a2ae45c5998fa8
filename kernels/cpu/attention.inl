// Paged causal attention with an online softmax. The meaning is one query row at a time over blocks of 64 positions in
// order; several rows run together only where that cannot change a row's operations.

namespace {

using namespace tinycluster;

constexpr int MOST_HEAD_DIM = 256;
constexpr int BLOCK_TILES = BLOCK / KV_TILE;
constexpr float LOWEST = -3.402823466e38f;
static_assert(KV_TILE == LANES && ATTENTION_ROWS % LANES == 0);

// A power of two of vectors, at most four, beside R rows: as many sums at once as the registers hold.
constexpr int vectors_beside(int R) { return MOST_CHAINS / R >= 4 ? 4 : MOST_CHAINS / R >= 2 ? 2 : 1; }

// 64 positions of one request and KV head, wherever the tiles lie.
struct KVBlock {
  const float* k[BLOCK_TILES];  // (C, 16 positions)
  const float* v[BLOCK_TILES];  // (16 positions, padded C)
};

// Tiles behind the last position are those of the first, so that reading them is harmless.
KVBlock find_block(const KVCache& cache, const int32_t* table, int64_t kv_head, int64_t start, int64_t last) {
  KVBlock block;
  for (int v = 0; v < BLOCK_TILES; ++v) {
    const int64_t position = start + v * KV_TILE;
    const int64_t tile = cache.tile(table, kv_head, position <= last ? position : start);
    block.k[v] = reinterpret_cast<const float*>(cache.keys + tile * cache.key_tile_bytes());
    block.v[v] = reinterpret_cast<const float*>(cache.values + tile * cache.value_tile_bytes());
  }
  return block;
}

// The rows of one task.
struct AttentionRows {
  int64_t C, padded_C;
  float scale;
  int j0[ATTENTION_ROWS], j1[ATTENTION_ROWS];             // positions of the block that a row sees; none if j0 > j1
  alignas(64) float q[MOST_HEAD_DIM][ATTENTION_ROWS];     // transposed, for rows side by side
  alignas(64) float weights[ATTENTION_ROWS][BLOCK];       // scores, then exp(score - most)
  alignas(64) float out[ATTENTION_ROWS * MOST_HEAD_DIM];  // (rows, padded C)
  alignas(64) float most[ATTENTION_ROWS], sum[ATTENTION_ROWS], shrink[ATTENTION_ROWS];
};

// weights[r][j] = scale * chain over c of q[r][c] * k[c][j], for R rows and V tiles of positions.
template <int R, int V>
void score_tiles(AttentionRows& s, const float* const* tiles, int r0, int j) {
  F32x16 sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = set1(0.0f);
  const float* k[V];
  for (int v = 0; v < V; ++v) k[v] = tiles[v];
  for (int64_t c = 0; c < s.C; ++c) {
    const float* q = s.q[c] + r0;
    UNROLL for (int v = 0; v < V; ++v) {
      const F32x16 keys = load(k[v] + c * LANES);
      UNROLL for (int r = 0; r < R; ++r) sum[r][v] = fma(set1(q[r]), keys, sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(s.weights[r0 + r] + j + v * LANES, mul(sum[r][v], set1(s.scale)));
}

template <int R>
void score(AttentionRows& s, const KVBlock& block, int r0, int tiles) {
  constexpr int V = vectors_beside(R);
  int v = 0;
  while (tiles - v > 0) {
    if (tiles - v >= 3 && V == 4) {
      score_tiles<R, V>(s, block.k + v, r0, v * LANES), v += 4;
    } else if (tiles - v >= 2 && V >= 2) {
      score_tiles < R, V<2 ? V : 2>(s, block.k + v, r0, v * LANES), v += 2;
    } else {
      score_tiles<R, 1>(s, block.k + v, r0, v * LANES), v += 1;
    }
  }
}

// Where positions outside j0 .. j1 of a vector of scores are to be the lowest number.
inline F32x16 visible_scores(const float* scores, int v, int j0, int j1) {
  const int begin = j0 - v * LANES < 0 ? 0 : j0 - v * LANES, end = j1 + 1 - v * LANES;
  if (begin >= LANES || end <= 0) return set1(LOWEST);
  const F32x16 x = load(scores + v * LANES);
  return begin == 0 && end >= LANES ? x : keep_lanes(x, begin, end > LANES ? LANES : end, set1(LOWEST));
}

// Turns the scores of rows r0 .. r0 + R - 1 into weights, and says by which factors their older sums shrink.
template <int R>
void soften(AttentionRows& s, int r0) {
  alignas(64) float older[LANES] = {}, sums[R];
  for (int r = 0; r < R; ++r) {
    const int row = r0 + r;
    if (s.j0[row] > s.j1[row]) continue;
    F32x16 x[BLOCK_TILES], most = set1(s.most[row]);
    for (int v = 0; v < BLOCK_TILES; ++v) {
      x[v] = visible_scores(s.weights[row], v, s.j0[row], s.j1[row]);
      most = max(most, x[v]);
    }
    const float now = max_lanes(most);
    older[r] = s.most[row] - now;
    s.most[row] = now;
    F32x16 sum = set1(0.0f);
    for (int v = 0; v < BLOCK_TILES; ++v) {
      x[v] = exp(sub(x[v], set1(now)));
      store(s.weights[row] + v * LANES, x[v]);
      sum = add(sum, x[v]);
    }
    sums[r] = add_lanes(sum);
  }
  store(older, exp(load(older)));
  for (int r = 0; r < R; ++r) {
    const int row = r0 + r;
    s.shrink[row] = older[r];
    if (s.j0[row] <= s.j1[row]) s.sum[row] = std::fma(s.sum[row], older[r], sums[r]);
  }
}

// out[r] = out[r] * shrink[r], then the chain over positions j0 .. j1 of fma(weight, v, out), for columns c .. c + 16
// W.
template <int R, int W>
void add_columns(AttentionRows& s, const KVBlock& block, int r0, int j0, int j1, bool is_first, int64_t c) {
  F32x16 sum[R][W];
  float* const out = s.out + r0 * s.padded_C + c;
  for (int r = 0; r < R; ++r) {
    const F32x16 shrink = set1(is_first ? s.shrink[r0 + r] : 1.0f);
    for (int w = 0; w < W; ++w) sum[r][w] = mul(load(out + r * s.padded_C + w * LANES), shrink);
  }
  for (int j = j0; j <= j1;) {
    const int end = j1 + 1 < (j / KV_TILE + 1) * KV_TILE ? j1 + 1 : (j / KV_TILE + 1) * KV_TILE;
    const float* v = block.v[j / KV_TILE] + (j % KV_TILE) * s.padded_C + c;
    for (; j < end; ++j, v += s.padded_C) {
      const float* weights = s.weights[r0] + j;
      UNROLL for (int w = 0; w < W; ++w) {
        const F32x16 values = load(v + w * LANES);
        UNROLL for (int r = 0; r < R; ++r) sum[r][w] = fma(set1(weights[r * BLOCK]), values, sum[r][w]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) store(out + r * s.padded_C + w * LANES, sum[r][w]);
}

template <int R>
void add_range(AttentionRows& s, const KVBlock& block, int r0, int j0, int j1, bool is_first) {
  constexpr int W = vectors_beside(R);
  int64_t c = 0;
  for (; c + W * LANES <= s.padded_C; c += W * LANES) add_columns<R, W>(s, block, r0, j0, j1, is_first, c);
  for (; c < s.padded_C; c += LANES) add_columns<R, 1>(s, block, r0, j0, j1, is_first, c);
}

// Positions that all rows see are added for all rows at once; those before and behind them row by row.
template <int R>
void add_values(AttentionRows& s, const KVBlock& block, int r0) {
  int low = 0, high = BLOCK - 1;
  for (int r = r0; r < r0 + R; ++r) {
    low = s.j0[r] > low ? s.j0[r] : low;
    high = s.j1[r] < high ? s.j1[r] : high;
  }
  if (R == 1 || low > high) {
    for (int r = r0; r < r0 + R; ++r)
      if (s.j0[r] <= s.j1[r]) add_range<1>(s, block, r, s.j0[r], s.j1[r], true);
    return;
  }
  bool is_first = true;
  for (int r = r0; r < r0 + R; ++r) is_first &= s.j0[r] == low;
  if (!is_first)
    for (int r = r0; r < r0 + R; ++r) add_range<1>(s, block, r, s.j0[r], low - 1, true);
  add_range<R>(s, block, r0, low, high, is_first);
  for (int r = r0; r < r0 + R; ++r)
    if (s.j1[r] > high) add_range<1>(s, block, r, high + 1, s.j1[r], false);
}

// One block of positions for rows r0 .. r0 + R - 1.
template <int R>
void attend_rows(AttentionRows& s, const KVBlock& block, int r0) {
  int last = -1;
  for (int r = r0; r < r0 + R; ++r)
    if (s.j0[r] <= s.j1[r] && s.j1[r] > last) last = s.j1[r];
  if (last < 0) return;
  score<R>(s, block, r0, last / KV_TILE + 1);
  soften<R>(s, r0);
  add_values<R>(s, block, r0);
}

void attend_block(AttentionRows& s, const KVBlock& block, int rows) {
  int r = 0;
  if constexpr (MOST_CHAINS > 1) {
    for (; rows - r == 6 || rows - r >= 9; r += 6) attend_rows<6>(s, block, r);
    for (; rows - r == 4 || rows - r >= 7; r += 4) attend_rows<4>(s, block, r);
    for (; rows - r >= 3; r += 3) attend_rows<3>(s, block, r);
    for (; rows - r >= 2; r += 2) attend_rows<2>(s, block, r);
  }
  for (; r < rows; ++r) attend_rows<1>(s, block, r);
}

void attention(const AttentionArgs& a, const AttentionTask& task) {
  AttentionRows s;
  s.C = a.cache->C, s.padded_C = a.cache->padded_C(), s.scale = a.scale;
  const int32_t* table = a.step->block_tables + task.request * a.step->block_table_stride;
  const int64_t first_token = a.step->row_start[task.request];
  int64_t at[ATTENTION_ROWS], first[ATTENTION_ROWS], last[ATTENTION_ROWS];
  const int rows = int(task.num_items);
  for (int r = 0; r < rows; ++r) {
    const int64_t item = task.first_item + r, token = first_token + item / task.heads.num_heads;
    at[r] = (token * a.H + task.heads.first_head + item % task.heads.num_heads) * s.C;
    last[r] = a.step->positions[token];
    first[r] = last[r] >= a.window ? last[r] + 1 - a.window : 0;
    for (int64_t c = 0; c < s.C; ++c) s.q[c][r] = a.q[at[r] + c];
    s.most[r] = LOWEST;
    s.sum[r] = 0.0f;
  }
  std::memset(s.out, 0, size_t(rows * s.padded_C) * sizeof(float));
  for (int64_t start = first[0] / BLOCK * BLOCK; start <= last[rows - 1]; start += BLOCK) {
    const int64_t end = start + BLOCK - 1 < last[rows - 1] ? start + BLOCK - 1 : last[rows - 1];
    for (int r = 0; r < rows; ++r) {
      s.j0[r] = int((first[r] > start ? first[r] : start) - start);
      s.j1[r] = int((last[r] < end ? last[r] : end) - start);
    }
    attend_block(s, find_block(*a.cache, table, task.heads.kv_head, start, end), rows);
  }
  for (int r = 0; r < rows; ++r)
    for (int64_t c = 0; c < s.C; c += LANES) {
      const int n = int(s.C - c);
      store_first(a.out + at[r] + c, div(load(s.out + r * s.padded_C + c), set1(s.sum[r])), n);
    }
}

// Keys and values of the step's tokens [begin, end) into the cache.
void write_kv(const KVWriteArgs& a, int64_t begin, int64_t end) {
  const KVCache& cache = *a.cache;
  const int64_t C = cache.C, padded = cache.padded_C();
  int64_t r = 0;
  for (int64_t t = begin; t < end; ++t) {
    while (a.step->row_start[r + 1] <= t) ++r;
    const int32_t* table = a.step->block_tables + r * a.step->block_table_stride;
    const int64_t position = a.step->positions[t], i = position % KV_TILE;
    for (int64_t h = 0; h < cache.KV; ++h) {
      const int64_t tile = cache.tile(table, h, position);
      float* keys = reinterpret_cast<float*>(cache.keys + tile * cache.key_tile_bytes()) + i;
      float* values = reinterpret_cast<float*>(cache.values + tile * cache.value_tile_bytes()) + i * padded;
      const float* k = a.k + (t * cache.KV + h) * C;
      for (int64_t c = 0; c < C; ++c) keys[c * KV_TILE] = k[c];
      std::memcpy(values, a.v + (t * cache.KV + h) * C, size_t(C) * sizeof(float));
    }
  }
}

}  // namespace
