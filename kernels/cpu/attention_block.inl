// One block of the online softmax: up to 64 positions for the rows of a task. A row's operations are those it would
// have alone; rows run together only where that cannot change them.

namespace {

using namespace tinycluster;

constexpr int MOST_ROWS = MOST_CHAINS > 1 ? 6 : 1;

// A power of two of vectors, at most four, beside R rows: as many sums at once as the registers hold.
constexpr int vectors_beside(int R) { return MOST_CHAINS / R >= 4 ? 4 : MOST_CHAINS / R >= 2 ? 2 : 1; }

// R rows that run together, at most MOST_ROWS. What is called with them stays a function of its own: inside the long
// one around them the compiler has no registers left for their addresses.
template <int R>
struct Rows {
  static constexpr int COUNT = R;
};

// body(Rows<R>, first row) over groups of R rows of begin .. end - 1 that run together.
template <class Body>
void in_groups(int begin, int end, const Body& body) {
  int r = begin;
  if constexpr (MOST_CHAINS > 1) {
    for (; end - r == 6 || end - r >= 9; r += 6) body(Rows<6>(), r);
    for (; end - r == 4 || end - r >= 7; r += 4) body(Rows<4>(), r);
    for (; end - r >= 3; r += 3) body(Rows<3>(), r);
    for (; end - r >= 2; r += 2) body(Rows<2>(), r);
  }
  for (; r < end; ++r) body(Rows<1>(), r);
}

// The rows of one task.
struct AttentionRows {
  int64_t C, padded_C;
  float scale;
  int j0[ATTENTION_ROWS], j1[ATTENTION_ROWS];  // positions of the block that a row sees, ascending; none if j0 > j1
  alignas(64) float q[ATTENTION_ROWS * MOST_HEAD_DIM];    // (rows, C)
  alignas(64) float out[ATTENTION_ROWS * MOST_HEAD_DIM];  // (rows, padded C)
  alignas(64) float weights[ATTENTION_ROWS][BLOCK];       // scores, then exp(score - most)
  alignas(64) float most[ATTENTION_ROWS], sum[ATTENTION_ROWS], shrink[ATTENTION_ROWS];
};

// weights[r][j] = scale * chain over c of q[r][c] * k[c][j], for R rows and the V tiles from `tile`.
template <class Block, int R, int V>
void score_tiles(AttentionRows& s, Block& block, int r0, int tile) {
  F32x16 sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = set1(0.0f);
  const int64_t C = s.C;
  const float* q = s.q + r0 * C;
  for (int64_t c = 0; c < C;) {
    auto keys = block.template keys<V>(tile, c);
    for (const int64_t end = std::min(c + Block::KEY_RUN, C); c < end; ++c, ++q, keys.step())
      UNROLL for (int v = 0; v < V; ++v) {
        const F32x16 x = keys.read(v);
        UNROLL for (int r = 0; r < R; ++r) sum[r][v] = fma(set1(q[r * C]), x, sum[r][v]);
      }
  }
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int v = 0; v < V; ++v)
      store(s.weights[r0 + r] + (tile + v) * LANES, mul(sum[r][v], set1(s.scale)));
}

template <class Block, int R>
[[gnu::noinline]] void score(Rows<R>, AttentionRows& s, Block& block, int r0) {
  constexpr int V = vectors_beside(R);
  const int tiles = s.j1[r0 + R - 1] / KV_TILE + 1;
  for (int tile = 0; tile < tiles;) {
    if (tiles - tile >= 3 && V == 4) {
      score_tiles<Block, R, V>(s, block, r0, tile), tile += 4;
    } else if (tiles - tile >= 2 && V >= 2) {
      score_tiles<Block, R, std::min(V, 2)>(s, block, r0, tile), tile += 2;
    } else {
      score_tiles<Block, R, 1>(s, block, r0, tile), tile += 1;
    }
  }
}

// Tile v of a row's scores, where positions outside j0 .. j1 get a weight of zero.
inline F32x16 visible_scores(const float* scores, int v, int j0, int j1) {
  const int begin = std::max(j0 - v * LANES, 0), end = std::min(j1 + 1 - v * LANES, LANES);
  const F32x16 none = set1(-std::numeric_limits<float>::infinity());
  return begin < end ? keep_lanes(load(scores + v * LANES), begin, end, none) : none;
}

// The highest number among a row's earlier scores and these; unseen scores become -inf.
inline float highest_score(AttentionRows& s, int r) {
  F32x16 most = set1(s.most[r]);
  if (s.j0[r] > 0 || s.j1[r] < BLOCK - 1)
    for (int v = 0; v < BLOCK_TILES; ++v)
      store(s.weights[r] + v * LANES, visible_scores(s.weights[r], v, s.j0[r], s.j1[r]));
  UNROLL for (int v = 0; v < BLOCK_TILES; ++v) most = max(most, load(s.weights[r] + v * LANES));
  return max_lanes(most);
}

// Turns the scores of rows r .. r + R - 1 into weights and adds up those of each.
template <int R>
INLINE void weigh(AttentionRows& s, int r, const float* most, float* added) {
  F32x16 x[R * BLOCK_TILES];
  const auto scores = [&](int i) { return s.weights[r + i / BLOCK_TILES] + i % BLOCK_TILES * LANES; };
  UNROLL for (int i = 0; i < R * BLOCK_TILES; ++i) x[i] = sub(load(scores(i)), set1(most[r + i / BLOCK_TILES]));
  exp(x);
  UNROLL for (int i = 0; i < R * BLOCK_TILES; ++i) store(scores(i), x[i]);
  UNROLL for (int i = 0; i < R; ++i) {
    F32x16 sum = x[i * BLOCK_TILES];
    UNROLL for (int v = 1; v < BLOCK_TILES; ++v) sum = add(sum, x[i * BLOCK_TILES + v]);
    added[r + i] = add_lanes(sum);
  }
}

// Turns the scores of rows begin .. end - 1 into weights, and says by which factors the older sums of all rows shrink:
// by one if no score is higher. All rows do each step together, so that none waits for the sums over its own lanes.
[[gnu::noinline]] void soften(AttentionRows& s, int rows, int begin, int end) {
  alignas(64) float most[ATTENTION_ROWS], added[ATTENTION_ROWS];
  for (int r = 0; r < rows; r += LANES) store(most + r, load(s.most + r)), store(added + r, set1(0.0f));
  for (int r = begin; r < end; ++r) most[r] = highest_score(s, r);
  for (int r = 0; r < rows; r += LANES) store(s.shrink + r, exp(sub(load(s.most + r), load(most + r))));
  int r = begin;
  for (; MOST_CHAINS >= 24 && end - r >= 2; r += 2) weigh<2>(s, r, most, added);
  for (; r < end; ++r) weigh<1>(s, r, most, added);
  for (int r = 0; r < rows; r += LANES) {
    store(s.most + r, load(most + r));
    store(s.sum + r, fma(load(s.sum + r), load(s.shrink + r), load(added + r)));
  }
}

// out[r] = out[r] * shrink[r], then the chain over positions j0 .. j1 of fma(weight, v, out), for W vectors of columns
// from c.
template <class Block, int R, int W>
void add_columns(AttentionRows& s, Block& block, int r0, int j0, int j1, bool is_first, int64_t c) {
  F32x16 sum[R][W];
  const int64_t padded_C = s.padded_C;
  float* const out = s.out + r0 * padded_C + c;
  UNROLL for (int r = 0; r < R; ++r) {
    const F32x16 shrink = set1(is_first ? s.shrink[r0 + r] : 1.0f);
    UNROLL for (int w = 0; w < W; ++w) sum[r][w] = mul(load(out + r * padded_C + w * LANES), shrink);
  }
  for (int j = j0; j <= j1;) {
    auto values = block.template values<W>(j, c);
    const float* weights = s.weights[r0] + j;
    for (const int end = std::min(j1 + 1, (j / Block::VALUE_RUN + 1) * Block::VALUE_RUN); j < end;
         ++j, ++weights, values.step())
      UNROLL for (int w = 0; w < W; ++w) {
        const F32x16 x = values.read(w);
        UNROLL for (int r = 0; r < R; ++r) sum[r][w] = fma(set1(weights[r * BLOCK]), x, sum[r][w]);
      }
  }
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int w = 0; w < W; ++w)
      store(out + r * padded_C + w * LANES, sum[r][w]);
}

template <class Block, int R>
void add_range(AttentionRows& s, Block& block, int r0, int j0, int j1, bool is_first) {
  constexpr int W = vectors_beside(R);
  int64_t c = 0;
  for (; c + W * LANES <= s.padded_C; c += W * LANES) add_columns<Block, R, W>(s, block, r0, j0, j1, is_first, c);
  for (; c < s.padded_C; c += LANES) add_columns<Block, R, 1>(s, block, r0, j0, j1, is_first, c);
}

// Positions that all rows see are added for all rows at once; those before and behind them row by row.
template <class Block, int R>
[[gnu::noinline]] void add_values(Rows<R>, AttentionRows& s, Block& block, int r0) {
  const int low = s.j0[r0 + R - 1], high = s.j1[r0];
  if (R == 1 || low > high) {
    for (int r = r0; r < r0 + R; ++r) add_range<Block, 1>(s, block, r, s.j0[r], s.j1[r], true);
    return;
  }
  const bool is_first = s.j0[r0] == low;
  if (!is_first)
    for (int r = r0; r < r0 + R; ++r) add_range<Block, 1>(s, block, r, s.j0[r], low - 1, true);
  add_range<Block, R>(s, block, r0, low, high, is_first);
  for (int r = r0; r < r0 + R; ++r)
    if (s.j1[r] > high) add_range<Block, 1>(s, block, r, high + 1, s.j1[r], false);
}

}  // namespace
