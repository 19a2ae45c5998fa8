// Matrix products. Every output element is one chain over k: SIMD runs across 16 output rows, never across k, so the
// number of tokens, tiles and threads cannot change a bit.

namespace {

using namespace tinycluster;

struct F16Bits {
  uint16_t bits;
};
struct BF16Bits {
  uint16_t bits;
};
inline F32x16 load_weight(const float* p) { return load(p); }
inline F32x16 load_weight(const F16Bits* p) { return load_f16(&p->bits); }
inline F32x16 load_weight(const BF16Bits* p) { return load_bf16(&p->bits); }

// NT tiles of 16 output rows, wherever they lie.
template <int NT>
struct Tiles {
  const uint8_t* at[NT];
};

// NT tiles times TB tokens of partial sums, kept in registers.
template <int NT, int TB>
struct Sums {
  F32x16 sum[NT][TB];
  void clear() {
    for (auto& row : sum)
      for (auto& lanes : row) lanes = set1(0.0f);
  }
};

// Columns [k0, k1) of dense weights: sum = fma(w, x, sum), k ascending.
template <class Element, int NT, int TB>
INLINE void dense_chain(const Tiles<NT>& tiles, const float* x, int64_t K, int64_t k0, int64_t k1, int64_t ahead,
                        Sums<NT, TB>& acc) {
  for (int64_t k = k0; k < k1; ++k) {
    F32x16 column[NT];
    UNROLL
    for (int n = 0; n < NT; ++n) {
      const Element* at = reinterpret_cast<const Element*>(tiles.at[n]) + k * TILE;
      if (TB <= 4) prefetch(reinterpret_cast<const uint8_t*>(at) + ahead);
      column[n] = load_weight(at);
    }
    UNROLL
    for (int t = 0; t < TB; ++t) {
      const F32x16 value = set1(x[t * K + k]);
      for (int n = 0; n < NT; ++n) acc.sum[n][t] = fma(column[n], value, acc.sum[n][t]);
    }
  }
}

// dots[n][t] += the products of one group's weights with one plane of the codes.
template <Format FORMAT, int NT, int TB>
inline void add_products(const uint8_t* const* weights, const int8_t* x, I32x16 (*dots)[TB]) {
  constexpr int VECTORS = FORMAT == Format::q8 ? 8 : 4;  // of 64 bytes per group and tile
  UNROLL
  for (int v = 0; v < VECTORS; ++v) {
    U8x64 low[NT], high[NT];
    UNROLL
    for (int n = 0; n < NT; ++n) {
      const U8x64 bytes = load_bytes(weights[n] + v * 64);
      low[n] = FORMAT == Format::q8 ? bytes : low_nibbles(bytes);
      if (FORMAT == Format::q4) high[n] = high_nibbles(bytes);
    }
    UNROLL
    for (int t = 0; t < TB; ++t) {
      int32_t quad;
      std::memcpy(&quad, x + (v * TB + t) * 4, 4);
      UNROLL
      for (int n = 0; n < NT; ++n) dots[n][t] = dot(dots[n][t], low[n], quad);
      if (FORMAT == Format::q8) continue;
      std::memcpy(&quad, x + ((v + 4) * TB + t) * 4, 4);
      UNROLL
      for (int n = 0; n < NT; ++n) dots[n][t] = dot(dots[n][t], high[n], quad);
    }
  }
}

// One group: its products are exact in int32, then
//   sum = fma(dot, w_scale * x_scale, sum)   and for q4   sum = fma(minimum, x_scale * x_sum, sum).
// The dot of the high bytes comes first, times 256, and that of the low bytes is added to it.
template <Format FORMAT, int BITS, int NT, int TB>
INLINE void add_group(const Tiles<NT>& tiles, uint8_t* codes, int64_t g, int64_t ahead, Sums<NT, TB>& acc) {
  constexpr int64_t CODE_BYTES = TILE * GROUP / (FORMAT == Format::q8 ? 1 : 2);
  constexpr int64_t RECORD = CODE_BYTES + TILE * (FORMAT == Format::q8 ? 2 : 4);
  const CodesRecord x = {codes + g * TB * Codes::token_bytes(BITS), BITS, TB};
  const uint8_t* weights[NT];
  UNROLL
  for (int n = 0; n < NT; ++n) {
    weights[n] = tiles.at[n] + g * RECORD;
    // A tile is a short stream, too short for the hardware to foresee: ask for the same place of a later tile.
    if (ahead)
      for (int64_t byte = 0; byte < RECORD; byte += 64) prefetch(weights[n] + ahead + byte);
  }
  I32x16 dots[NT][TB];
  UNROLL
  for (int t = 0; t < TB; ++t)
    for (int n = 0; n < NT; ++n) dots[n][t] = iset1(FORMAT == Format::q8 && BITS == 8 ? x.offsets()[t] : 0);
  if constexpr (BITS == 16) {
    add_products<FORMAT, NT, TB>(weights, x.quad(0, 0, 0), dots);
    UNROLL
    for (int t = 0; t < TB; ++t)
      for (int n = 0; n < NT; ++n)
        dots[n][t] = join_bytes(dots[n][t], iset1(FORMAT == Format::q8 ? x.offsets()[t] : 0));
  }
  add_products<FORMAT, NT, TB>(weights, x.quad(BITS / 8 - 1, 0, 0), dots);
  UNROLL
  for (int n = 0; n < NT; ++n) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(weights[n] + CODE_BYTES);
    const F32x16 w_scale = load_f16(scales);
    const F32x16 minimum = FORMAT == Format::q4 ? load_f16(scales + TILE) : w_scale;
    UNROLL
    for (int t = 0; t < TB; ++t) {
      F32x16& sum = acc.sum[n][t];
      sum = fma(to_f32(dots[n][t]), mul(w_scale, set1(x.scales()[t])), sum);
      if (FORMAT == Format::q4) sum = fma(minimum, set1(x.sums()[t]), sum);
    }
  }
}

// NT tiles times tokens token .. token + TB - 1 in a format whose activations are rounded to BITS (0 for dense ones).
// `ahead` is how far to prefetch, 0 for not at all.
template <Format FORMAT, int BITS, int NT, int TB>
struct Block {
  const Weight& w;
  const Tiles<NT> tiles;
  const float* x;
  uint8_t* codes;
  const int64_t ahead;

  Block(const LinearArgs& a, const Tiles<NT>& tiles, int64_t token, int64_t ahead)
      : w(*a.weight),
        tiles(tiles),
        x(a.x + (BITS ? 0 : token * w.K)),
        codes(BITS ? a.codes.block(token) : nullptr),
        ahead(ahead) {}

  // Steps [begin, end): columns for dense weights, groups for grouped ones.
  INLINE void add(int64_t begin, int64_t end, Sums<NT, TB>& sums) const {
    Sums<NT, TB> acc = sums;  // a copy can live in registers
    if constexpr (BITS > 0) {
      for (int64_t g = begin; g < end; ++g) add_group<FORMAT, BITS>(tiles, codes, g, ahead, acc);
    } else {
      if constexpr (FORMAT == Format::f32) dense_chain<float>(tiles, x, w.K, begin, end, ahead, acc);
      if constexpr (FORMAT == Format::f16) dense_chain<F16Bits>(tiles, x, w.K, begin, end, ahead, acc);
      if constexpr (FORMAT == Format::bf16) dense_chain<BF16Bits>(tiles, x, w.K, begin, end, ahead, acc);
    }
    sums = acc;
  }
  int64_t steps() const { return BITS ? w.groups : w.K; }
  int64_t steps_per_unit() const { return BITS ? w.groups_per_unit : w.unit; }
};

inline int lanes_of_tile(const Weight& w, int64_t tile) {
  const int64_t rest = w.N - tile * TILE;
  return rest < TILE ? int(rest) : TILE;
}

template <int NT>
Tiles<NT> tiles_from(const Weight& w, int64_t tile) {
  Tiles<NT> tiles;
  for (int n = 0; n < NT; ++n) tiles.at[n] = w.values + (tile + n) * w.tile_bytes;
  return tiles;
}

// The sum of the units as fixed-point integers.
template <Format FORMAT, int BITS, int NT, int TB>
bool fixed_block(const LinearArgs& a, int64_t tile, int64_t token, int64_t ahead) {
  const Weight& w = *a.weight;
  const Block<FORMAT, BITS, NT, TB> block(a, tiles_from<NT>(w, tile), token, ahead);
  alignas(64) int64_t fixed[NT][TB][TILE] = {};
  I32x16 most = iset1(0);
  for (int64_t begin = 0; begin < block.steps(); begin += block.steps_per_unit()) {
    const int64_t end = begin + block.steps_per_unit();
    Sums<NT, TB> sums;
    sums.clear();
    block.add(begin, end < block.steps() ? end : block.steps(), sums);
    UNROLL
    for (int n = 0; n < NT; ++n) {
      UNROLL
      for (int t = 0; t < TB; ++t) {
        add_fixed(fixed[n][t], sums.sum[n][t]);
        most = max(most, magnitude_bits(sums.sum[n][t]));
      }
    }
  }
  for (int n = 0; n < NT; ++n)
    for (int t = 0; t < TB; ++t) {
      const int lanes = lanes_of_tile(w, tile + n);
      const int64_t row = (tile + n) * TILE, at = (token + t) * w.N + row;
      if (a.fixed) {
        std::memcpy(a.fixed + at, fixed[n][t], lanes * sizeof(int64_t));
      } else {
        add_to_residual(a.residual + at, fixed[n][t], a.bias ? a.bias + row : nullptr, lanes);
      }
    }
  return max_lanes(most) < bits_of(a.limit);
}

template <Format FORMAT, int BITS, int NT, int TB>
bool linear_block(const LinearArgs& a, int64_t tile, int64_t token, int64_t ahead) {
  if (!a.out) return fixed_block<FORMAT, BITS, NT, TB>(a, tile, token, ahead);
  const Weight& w = *a.weight;
  const Block<FORMAT, BITS, NT, TB> block(a, tiles_from<NT>(w, tile), token, ahead);
  Sums<NT, TB> sums;
  sums.clear();
  block.add(0, block.steps(), sums);
  for (int n = 0; n < NT; ++n) {
    const int lanes = lanes_of_tile(w, tile + n);
    const int64_t row = (tile + n) * TILE;
    for (int t = 0; t < TB; ++t) {
      F32x16 y = sums.sum[n][t];
      if (a.bias) y = add(y, load_first(a.bias + row, lanes));
      store_first(a.out + (token + t) * w.N + row, y, lanes);
    }
  }
  return true;
}

// Sums that fill the registers without spilling, beside as many integer sums for grouped formats. Fewer tokens leave
// room for more tiles, and several chains at once hide the latency of one.
template <Format FORMAT, int TB>
constexpr int tiles_at_once() {
  constexpr bool IS_GROUPED = FORMAT == Format::q8 || FORMAT == Format::q4;
  constexpr int SUMS = IS_GROUPED || MOST_SUMS < 8 ? MOST_SUMS : 2 * MOST_SUMS;
  constexpr int TILES = SUMS / (TB == 3 ? 4 : TB);
  return TILES < 1 ? 1 : TILES > MOST_SUMS / 2 ? (MOST_SUMS > 1 ? MOST_SUMS / 2 : 1) : TILES;
}

// Tokens token .. token + TB - 1 against tiles [begin, end).
template <Format FORMAT, int BITS, int TB>
bool tokens_against_tiles(const LinearArgs& a, int64_t token, int64_t begin, int64_t end, bool is_streaming) {
  constexpr int NT = tiles_at_once<FORMAT, TB>();
  bool fits = true;
  int64_t tile = begin;
  const int64_t ahead = is_streaming ? a.weight->tile_bytes : 0;
  for (; tile + NT <= end; tile += NT) fits &= linear_block<FORMAT, BITS, NT, TB>(a, tile, token, NT * ahead);
  for (; tile < end; ++tile) fits &= linear_block<FORMAT, BITS, 1, TB>(a, tile, token, ahead);
  return fits;
}

// The last tokens of T, fewer than a block of 8 or 4.
template <Format FORMAT, int BITS>
bool last_tokens(const LinearArgs& a, int64_t token, int64_t begin, int64_t end, bool is_streaming) {
  switch (a.T - token) {
    case 1:
      return tokens_against_tiles<FORMAT, BITS, 1>(a, token, begin, end, is_streaming);
    case 2:
      return tokens_against_tiles<FORMAT, BITS, 2>(a, token, begin, end, is_streaming);
    case 3:
      return tokens_against_tiles<FORMAT, BITS, 3>(a, token, begin, end, is_streaming);
    default:
      return true;
  }
}

// So many tokens, a multiple of TB, that what the chains read of them stays in the second cache level.
template <Format FORMAT, int TB>
int64_t tokens_in_second_cache(const LinearArgs& a) {
  constexpr int64_t L2_BYTES = 384 * 1024;
  const int64_t bytes = a.codes.records ? a.codes.groups * Codes::token_bytes(a.codes.bits) : a.weight->K * 4;
  return (L2_BYTES / (bytes + 1) / TB + 1) * TB;
}

// A few tiles stay in the first cache level while the tokens stream by.
template <Format FORMAT, int BITS>
bool linear_format(const LinearArgs& a, int64_t begin, int64_t end) {
  constexpr bool IS_GROUPED = FORMAT == Format::q8 || FORMAT == Format::q4;
  constexpr int64_t TB = IS_GROUPED || MOST_SUMS < 8 ? CODE_BLOCK : 8, TILES = 4;
  const int64_t chunk = tokens_in_second_cache<FORMAT, TB>(a);
  bool fits = true;
  for (int64_t start = 0; start < a.T; start += chunk) {
    const int64_t stop = start + chunk < a.T ? start + chunk : a.T;
    for (int64_t tile = begin; tile < end; tile += TILES) {
      const int64_t tile_end = tile + TILES < end ? tile + TILES : end;
      int64_t t = start;
      for (; t + TB <= stop; t += TB) fits &= tokens_against_tiles<FORMAT, BITS, TB>(a, t, tile, tile_end, t == 0);
      if constexpr (TB == 8)
        if (t + 4 <= stop) fits &= tokens_against_tiles<FORMAT, BITS, 4>(a, t, tile, tile_end, t == 0), t += 4;
      if (t < stop) fits &= last_tokens<FORMAT, BITS>(a, t, tile, tile_end, t == 0);
    }
  }
  return fits;
}

template <Format FORMAT>
bool linear_grouped(const LinearArgs& a, int64_t begin, int64_t end) {
  return a.codes.bits == 16 ? linear_format<FORMAT, 16>(a, begin, end) : linear_format<FORMAT, 8>(a, begin, end);
}

bool linear(const LinearArgs& a, int64_t begin, int64_t end) {
  switch (a.weight->format) {
    case Format::f32:
      return linear_format<Format::f32, 0>(a, begin, end);
    case Format::f16:
      return linear_format<Format::f16, 0>(a, begin, end);
    case Format::bf16:
      return linear_format<Format::bf16, 0>(a, begin, end);
    case Format::q8:
      return linear_grouped<Format::q8>(a, begin, end);
    case Format::q4:
      return linear_grouped<Format::q4>(a, begin, end);
  }
  return false;
}

}  // namespace
