// One block of the online softmax: up to 64 positions for the rows of a task. A row's operations are those it would
// have alone; rows run together only where that cannot change them.

namespace {

using namespace tinycluster;

constexpr int BLOCK_TILES = BLOCK / KV_TILE;
constexpr int MOST_ROWS = MOST_CHAINS > 1 ? 6 : 1;
constexpr float LOWEST = -3.402823466e38f;

// A power of two of vectors, at most four, beside R rows: as many sums at once as the registers hold.
constexpr int vectors_beside(int R) { return MOST_CHAINS / R >= 4 ? 4 : MOST_CHAINS / R >= 2 ? 2 : 1; }

// 64 positions of one request and KV head, wherever the tiles lie.
struct KVBlock {
  const uint8_t* k[BLOCK_TILES];
  const uint8_t* v[BLOCK_TILES];
};

// Tiles behind the last position are those of the first, so that reading them is harmless.
KVBlock find_block(const KVCache& cache, const int32_t* table, int64_t kv_head, int64_t start, int64_t last) {
  KVBlock block;
  for (int v = 0; v < BLOCK_TILES; ++v) {
    const int64_t position = start + v * KV_TILE;
    const int64_t tile = cache.tile(table, kv_head, position <= last ? position : start);
    block.k[v] = cache.keys + tile * cache.key_tile_bytes();
    block.v[v] = cache.values + tile * cache.value_tile_bytes();
  }
  return block;
}

// The rows of one task.
struct AttentionRows {
  int64_t C, padded_C;
  float scale;
  int j0[ATTENTION_ROWS], j1[ATTENTION_ROWS];  // positions of the block that a row sees; none if j0 > j1
  alignas(64) float q[ATTENTION_ROWS][MOST_HEAD_DIM + LANES];  // apart by no power of two, which caches dislike
  alignas(64) float weights[ATTENTION_ROWS][BLOCK];            // scores, then exp(score - most)
  alignas(64) float out[ATTENTION_ROWS * MOST_HEAD_DIM];       // (rows, padded C)
  alignas(64) float most[ATTENTION_ROWS], sum[ATTENTION_ROWS], shrink[ATTENTION_ROWS];
};

// R rows that run together, at most MOST_ROWS. What is called with them stays a function of its own: inside the long
// one around them the compiler has no registers left for their addresses.
template <int R>
struct Rows {};

// weights[r][j] = scale * chain over c of q[r][c] * k[c][j], for R rows and V tiles of positions.
template <class Codes, int R, int V>
void score_tiles(AttentionRows& s, const uint8_t* const* tiles, const uint8_t* const* next, int r0, int j) {
  F32x16 sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = set1(0.0f);
  constexpr int64_t next_row = MOST_HEAD_DIM + LANES;
  const float* q = s.q[r0];
  for (int64_t c = 0; c < s.C;) {
    F32x16 scales[V];
    for (int v = 0; v < V; ++v) scales[v] = KeyTile<Codes>::scale(tiles[v], s.C, c);
    for (const int64_t end = c + KV_GROUP < s.C ? c + KV_GROUP : s.C; c < end; ++c, ++q)
      UNROLL for (int v = 0; v < V; ++v) {
        const F32x16 keys = KeyTile<Codes>::read(tiles[v], c, scales[v]);
        KeyTile<Codes>::prefetch_codes(next[v], c);
        UNROLL for (int r = 0; r < R; ++r) sum[r][v] = fma(set1(q[r * next_row]), keys, sum[r][v]);
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(s.weights[r0 + r] + j + v * LANES, mul(sum[r][v], set1(s.scale)));
}

template <class Codes, int R>
[[gnu::noinline]] void score(Rows<R>, AttentionRows& s, const KVBlock& block, const KVBlock& next, int r0) {
  constexpr int V = vectors_beside(R);
  int last = -1;
  for (int r = r0; r < r0 + R; ++r)
    if (s.j0[r] <= s.j1[r] && s.j1[r] > last) last = s.j1[r];
  const int tiles = (last + KV_TILE) / KV_TILE;
  int v = 0;
  while (tiles - v > 0) {
    if (tiles - v >= 3 && V == 4) {
      score_tiles<Codes, R, V>(s, block.k + v, next.k + v, r0, v * LANES), v += 4;
    } else if (tiles - v >= 2 && V >= 2) {
      score_tiles<Codes, R, std::min(V, 2)>(s, block.k + v, next.k + v, r0, v * LANES), v += 2;
    } else {
      score_tiles<Codes, R, 1>(s, block.k + v, next.k + v, r0, v * LANES), v += 1;
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

// Turns the scores of rows r0 .. r0 + R - 1 into weights, and says by which factors their older sums shrink. All rows
// do each step together, so that no row waits for the sums over its own lanes.
template <int R>
[[gnu::noinline]] void soften(Rows<R>, AttentionRows& s, int r0) {
  alignas(64) float older[LANES] = {}, now[R];
  UNROLL for (int r = 0; r < R; ++r) {
    const int row = r0 + r;
    F32x16 most = set1(s.most[row]);
    for (int v = 0; v < BLOCK_TILES; ++v) {
      const F32x16 x = visible_scores(s.weights[row], v, s.j0[row], s.j1[row]);
      store(s.weights[row] + v * LANES, x);
      most = max(most, x);
    }
    now[r] = max_lanes(most);
    older[r] = s.most[row] - now[r];
  }
  F32x16 sums[R];
  for (int r = 0; r < R; ++r) {
    sums[r] = set1(0.0f);
    UNROLL for (int v = 0; v < BLOCK_TILES; ++v) {
      const F32x16 e = exp(sub(load(s.weights[r0 + r] + v * LANES), set1(now[r])));
      store(s.weights[r0 + r] + v * LANES, e);
      sums[r] = add(sums[r], e);
    }
  }
  store(older, exp(load(older)));
  UNROLL for (int r = 0; r < R; ++r) {
    const int row = r0 + r;
    s.shrink[row] = older[r], s.most[row] = now[r];
    const float sum = std::fma(s.sum[row], older[r], add_lanes(sums[r]));
    s.sum[row] = s.j0[row] <= s.j1[row] ? sum : s.sum[row];
  }
}

// out[r] = out[r] * shrink[r], then the chain over positions j0 .. j1 of fma(weight, v, out), for columns c .. c + 16
// W.
template <class Codes, int R, int W>
void add_columns(AttentionRows& s, const KVBlock& block, const KVBlock& next, int r0, int j0, int j1, bool is_first,
                 int64_t c) {
  F32x16 sum[R][W];
  float* const out = s.out + r0 * s.padded_C + c;
  for (int r = 0; r < R; ++r) {
    const F32x16 shrink = set1(is_first ? s.shrink[r0 + r] : 1.0f);
    for (int w = 0; w < W; ++w) sum[r][w] = mul(load(out + r * s.padded_C + w * LANES), shrink);
  }
  for (int j = j0; j <= j1;) {
    const int end = j1 + 1 < (j / KV_TILE + 1) * KV_TILE ? j1 + 1 : (j / KV_TILE + 1) * KV_TILE;
    ValueRows<Codes> rows(block.v[j / KV_TILE], next.v[j / KV_TILE], s.padded_C, j % KV_TILE, c);
    for (; j < end; ++j, rows.step()) {
      const float* weights = s.weights[r0] + j;
      UNROLL for (int w = 0; w < W; ++w) {
        const F32x16 values = rows.read(w);
        rows.prefetch_next_block(w);
        UNROLL for (int r = 0; r < R; ++r) sum[r][w] = fma(set1(weights[r * BLOCK]), values, sum[r][w]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) store(out + r * s.padded_C + w * LANES, sum[r][w]);
}

template <class Codes, int R>
void add_range(AttentionRows& s, const KVBlock& block, const KVBlock& next, int r0, int j0, int j1, bool is_first) {
  constexpr int W = vectors_beside(R);
  int64_t c = 0;
  for (; c + W * LANES <= s.padded_C; c += W * LANES) add_columns<Codes, R, W>(s, block, next, r0, j0, j1, is_first, c);
  for (; c < s.padded_C; c += LANES) add_columns<Codes, R, 1>(s, block, next, r0, j0, j1, is_first, c);
}

// Positions that all rows see are added for all rows at once; those before and behind them row by row.
template <class Codes, int R>
[[gnu::noinline]] void add_values(Rows<R>, AttentionRows& s, const KVBlock& block, const KVBlock& next, int r0) {
  int low = 0, high = BLOCK - 1;
  for (int r = r0; r < r0 + R; ++r) {
    low = s.j0[r] > low ? s.j0[r] : low;
    high = s.j1[r] < high ? s.j1[r] : high;
  }
  if (R == 1 || low > high) {
    for (int r = r0; r < r0 + R; ++r)
      if (s.j0[r] <= s.j1[r]) add_range<Codes, 1>(s, block, next, r, s.j0[r], s.j1[r], true);
    return;
  }
  bool is_first = true;
  for (int r = r0; r < r0 + R; ++r) is_first &= s.j0[r] == low;
  if (!is_first)
    for (int r = r0; r < r0 + R; ++r) add_range<Codes, 1>(s, block, next, r, s.j0[r], low - 1, true);
  add_range<Codes, R>(s, block, next, r0, low, high, is_first);
  for (int r = r0; r < r0 + R; ++r)
    if (s.j1[r] > high) add_range<Codes, 1>(s, block, next, r, high + 1, s.j1[r], false);
}

// body(Rows<R>, first row) over groups of R rows that run together.
template <class Body>
void in_groups(int rows, const Body& body) {
  int r = 0;
  if constexpr (MOST_CHAINS > 1) {
    for (; rows - r == 6 || rows - r >= 9; r += 6) body(Rows<6>(), r);
    for (; rows - r == 4 || rows - r >= 7; r += 4) body(Rows<4>(), r);
    for (; rows - r >= 3; r += 3) body(Rows<3>(), r);
    for (; rows - r >= 2; r += 2) body(Rows<2>(), r);
  }
  for (; r < rows; ++r) body(Rows<1>(), r);
}

// One block of positions for all rows: the keys, then the values, stay in the first-level cache.
template <class Codes>
void attend_block(AttentionRows& s, const KVBlock& block, const KVBlock& next, int rows) {
  in_groups(rows, [&](auto group, int r0) { score<Codes>(group, s, block, next, r0); });
  in_groups(rows, [&](auto group, int r0) { soften(group, s, r0); });
  in_groups(rows, [&](auto group, int r0) { add_values<Codes>(group, s, block, next, r0); });
}

// A block as float32, for many rows that would each turn it into that.
struct UnpackedBlock {
  alignas(64) float k[BLOCK_TILES][MOST_HEAD_DIM * KV_TILE];
  alignas(64) float v[BLOCK_TILES][MOST_HEAD_DIM * KV_TILE];
};

template <class Codes>
KVBlock unpack(const AttentionRows& s, const KVBlock& block, int64_t num_positions, UnpackedBlock& to) {
  KVBlock unpacked;
  for (int i = 0; i < BLOCK_TILES; ++i) {
    unpacked.k[i] = reinterpret_cast<const uint8_t*>(to.k[i]),
    unpacked.v[i] = reinterpret_cast<const uint8_t*>(to.v[i]);
    if (i * KV_TILE >= num_positions) continue;
    for (int64_t c = 0; c < s.C; ++c)
      store(to.k[i] + c * LANES, KeyTile<Codes>::read(block.k[i], c, KeyTile<Codes>::scale(block.k[i], s.C, c)));
    for (int64_t c = 0; c < s.padded_C; c += LANES) {
      ValueRows<Codes> rows(block.v[i], block.v[i], s.padded_C, 0, c);
      for (int64_t j = 0; j < KV_TILE; ++j, rows.step()) store(to.v[i] + j * s.padded_C + c, rows.read(0));
    }
  }
  return unpacked;
}

}  // namespace
