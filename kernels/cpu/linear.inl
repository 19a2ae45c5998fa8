// Matrix products. Every output element is one chain over k: SIMD runs across 16 output rows, never across k, so the
// number of tokens, tiles and threads cannot change a bit.

namespace {

using namespace tinycluster;

// NT tiles of 16 output rows times TB tokens of partial sums, kept in registers.
template <int NT, int TB>
struct Accumulators {
  F32x16 sum[NT][TB];
  void clear() {
    for (auto& row : sum)
      for (auto& lanes : row) lanes = set1(0.0f);
  }
};

inline F32x16 load_weight(const float* p) { return load(p); }
struct F16Bits {
  uint16_t bits;
};
struct BF16Bits {
  uint16_t bits;
};
inline F32x16 load_weight(const F16Bits* p) { return load_f16(&p->bits); }
inline F32x16 load_weight(const BF16Bits* p) { return load_bf16(&p->bits); }

// Columns [k0, k1) of dense weights: sum = fma(w, x, sum), k ascending.
template <class Element, int NT, int TB>
void dense_chain(const LinearArgs& a, int64_t tile, int64_t token, int64_t k0, int64_t k1, Accumulators<NT, TB>& acc) {
  const int64_t K = a.weight->K;
  const Element* w = static_cast<const Element*>(a.weight->values) + tile * K * TILE;
  const float* x = a.x + token * K;
  for (int64_t k = k0; k < k1; ++k) {
    F32x16 column[NT];
    for (int n = 0; n < NT; ++n) column[n] = load_weight(w + (n * K + k) * TILE);
    for (int t = 0; t < TB; ++t) {
      const F32x16 value = set1(x[t * K + k]);
      for (int n = 0; n < NT; ++n) acc.sum[n][t] = fma(column[n], value, acc.sum[n][t]);
    }
  }
}

inline int32_t quad_at(const int8_t* codes, int j) {
  int32_t quad;
  std::memcpy(&quad, codes + 4 * j, 4);
  return quad;
}

// Groups [g0, g1): the products inside a group are exact in int32, then
//   sum = fma(dot, w_scale * x_scale, sum)   and for q4   sum = fma(minimum, x_scale * x_sum, sum).
// PLANES is the number of bytes of an activation's code; the dot of two bytes is 256 * (high dot) + (low dot).
template <Format FORMAT, int PLANES, int NT, int TB>
void grouped_chain(const LinearArgs& a, int64_t tile, int64_t token, int64_t g0, int64_t g1,
                   Accumulators<NT, TB>& sums) {
  Accumulators<NT, TB> acc = sums;                       // a copy can live in registers
  constexpr int VECTORS = FORMAT == Format::q8 ? 8 : 4;  // of 64 bytes per group and tile
  const int64_t G = a.weight->groups();
  const uint8_t* codes = static_cast<const uint8_t*>(a.weight->values) + tile * G * VECTORS * 64;
  for (int64_t g = g0; g < g1; ++g) {
    I32x16 dots[PLANES][NT][TB];
    for (int t = 0; t < TB; ++t)
      for (int n = 0; n < NT; ++n) {
        dots[0][n][t] = iset1(FORMAT == Format::q8 ? -128 * a.xq.sums[(token + t) * G + g] : 0);
        if (PLANES == 2) dots[PLANES - 1][n][t] = iset1(0);
      }
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      U8x64 w[NT], w_high[NT];
      for (int n = 0; n < NT; ++n) {
        const uint8_t* at = codes + ((n * G + g) * VECTORS + v) * 64;
        // A tile is a short stream, too short for the hardware to foresee: ask for the same place of the next tiles.
        if (TB <= 2) prefetch(at + NT * G * VECTORS * 64);
        const U8x64 bytes = load_bytes(at);
        w[n] = FORMAT == Format::q8 ? bytes : low_nibbles(bytes);
        if (FORMAT == Format::q4) w_high[n] = high_nibbles(bytes);
      }
      UNROLL
      for (int t = 0; t < TB; ++t)
        for (int plane = 0; plane < PLANES; ++plane) {
          const int8_t* x = (plane ? a.xq.high : a.xq.low) + ((token + t) * G + g) * GROUP;
          for (int n = 0; n < NT; ++n) {
            dots[plane][n][t] = dot(dots[plane][n][t], w[n], quad_at(x, v));
            if (FORMAT == Format::q4) dots[plane][n][t] = dot(dots[plane][n][t], w_high[n], quad_at(x, v + 4));
          }
        }
    }
    for (int n = 0; n < NT; ++n) {
      const int64_t at = ((tile + n) * G + g) * TILE;
      const F32x16 w_scale = load_f16(a.weight->scales + at);
      const F32x16 minimum = FORMAT == Format::q4 ? load_f16(a.weight->minimums + at) : set1(0.0f);
      for (int t = 0; t < TB; ++t) {
        const float x_scale = a.xq.scales[(token + t) * G + g];
        const I32x16 total = PLANES == 2 ? join_bytes(dots[PLANES - 1][n][t], dots[0][n][t]) : dots[0][n][t];
        F32x16& sum = acc.sum[n][t];
        sum = fma(to_f32(total), mul(w_scale, set1(x_scale)), sum);
        if (FORMAT == Format::q4) sum = fma(minimum, set1(x_scale * float(a.xq.sums[(token + t) * G + g])), sum);
      }
    }
  }
  sums = acc;
}

// One unit of k: columns for dense weights, groups for grouped ones.
template <Format FORMAT, int NT, int TB>
void unit_chain(const LinearArgs& a, int64_t tile, int64_t token, int64_t unit, Accumulators<NT, TB>& acc) {
  const Weight& w = *a.weight;
  const bool is_last = unit + 1 == w.units();
  if constexpr (FORMAT == Format::q8 || FORMAT == Format::q4) {
    const int64_t per_unit = w.groups_per_unit();
    const int64_t end = is_last ? w.groups() : (unit + 1) * per_unit;
    if (a.xq.high) {
      grouped_chain<FORMAT, 2>(a, tile, token, unit * per_unit, end, acc);
    } else {
      grouped_chain<FORMAT, 1>(a, tile, token, unit * per_unit, end, acc);
    }
  } else {
    const int64_t k0 = unit * w.unit, k1 = is_last ? w.K : k0 + w.unit;
    if constexpr (FORMAT == Format::f32) dense_chain<float>(a, tile, token, k0, k1, acc);
    if constexpr (FORMAT == Format::f16) dense_chain<F16Bits>(a, tile, token, k0, k1, acc);
    if constexpr (FORMAT == Format::bf16) dense_chain<BF16Bits>(a, tile, token, k0, k1, acc);
  }
}

inline int lanes_of_tile(const Weight& w, int64_t tile) {
  const int64_t rest = w.N - tile * TILE;
  return rest < TILE ? int(rest) : TILE;
}

template <Format FORMAT, int NT, int TB>
bool linear_block(const LinearArgs& a, int64_t tile, int64_t token) {
  const Weight& w = *a.weight;
  Accumulators<NT, TB> acc;
  if (a.out) {
    acc.clear();
    if (w.units()) unit_chain<FORMAT>(a, tile, token, 0, acc);
    for (int n = 0; n < NT; ++n) {
      const int lanes = lanes_of_tile(w, tile + n);
      const int64_t row = (tile + n) * TILE;
      for (int t = 0; t < TB; ++t) {
        F32x16 y = acc.sum[n][t];
        if (a.bias) y = add(y, load_first(a.bias + row, lanes));
        store_first(a.out + (token + t) * w.N + row, y, lanes);
      }
    }
    return true;
  }
  int64_t fixed[NT][TB][TILE] = {};
  bool fits = true;
  for (int64_t unit = 0; unit < w.units(); ++unit) {
    acc.clear();
    unit_chain<FORMAT>(a, tile, token, unit, acc);
    for (int n = 0; n < NT; ++n)
      for (int t = 0; t < TB; ++t) fits &= add_fixed(fixed[n][t], acc.sum[n][t], a.limit);
  }
  for (int n = 0; n < NT; ++n)
    for (int t = 0; t < TB; ++t)
      std::memcpy(a.out_fixed + (token + t) * w.N + (tile + n) * TILE, fixed[n][t],
                  lanes_of_tile(w, tile + n) * sizeof(int64_t));
  return fits;
}

// All tokens against NT tiles, TB at a time: the tiles stay in the first cache levels while the tokens stream by.
template <Format FORMAT, int NT, int TB>
bool linear_tiles(const LinearArgs& a, int64_t tile) {
  bool fits = true;
  int64_t t = 0;
  for (; t + TB <= a.T; t += TB) fits &= linear_block<FORMAT, NT, TB>(a, tile, t);
  if constexpr (TB > 4)
    if (t + 4 <= a.T) fits &= linear_block<FORMAT, NT, 4>(a, tile, t), t += 4;
  if constexpr (TB > 2)
    if (t + 2 <= a.T) fits &= linear_block<FORMAT, NT, 2>(a, tile, t), t += 2;
  if constexpr (TB > 1)
    if (t < a.T) fits &= linear_block<FORMAT, NT, 1>(a, tile, t);
  return fits;
}

// Blocks of sums that fill the registers without spilling: for few tokens more tiles, since several chains at once hide
// the latency of one; grouped formats with 16-bit codes keep two integer sums beside each float.
template <Format FORMAT>
bool linear_format(const LinearArgs& a, int64_t begin, int64_t end) {
  bool fits = true;
  int64_t tile = begin;
  if constexpr (MOST_SUMS > 1) {
    if (a.T < 4)
      for (; tile + 4 <= end; tile += 4) fits &= linear_tiles<FORMAT, 4, MOST_SUMS / 4>(a, tile);
  }
  if constexpr (MOST_SUMS > 4) {
    constexpr bool GROUPED = FORMAT == Format::q8 || FORMAT == Format::q4;
    for (; tile + 2 <= end; tile += 2) fits &= linear_tiles<FORMAT, 2, GROUPED ? MOST_SUMS / 2 : MOST_SUMS>(a, tile);
  }
  for (; tile < end; ++tile) fits &= linear_tiles<FORMAT, 1, MOST_SUMS>(a, tile);
  return fits;
}

bool linear(const LinearArgs& a, int64_t begin, int64_t end) {
  switch (a.weight->format) {
    case Format::f32:
      return linear_format<Format::f32>(a, begin, end);
    case Format::f16:
      return linear_format<Format::f16>(a, begin, end);
    case Format::bf16:
      return linear_format<Format::bf16>(a, begin, end);
    case Format::q8:
      return linear_format<Format::q8>(a, begin, end);
    case Format::q4:
      return linear_format<Format::q4>(a, begin, end);
  }
  return false;
}

// code = rint(x * (most_code / max|x|)) per group, scale = max|x| / most_code; most_code is 127 or 127 * 256. Where
// max|x| is so small that the quotient could overflow the codes are 0. A group with a NaN or an infinity gets the scale
// NaN, which the checks of later layers turn into an error.
void quantize_group(const float* x, int count, const QuantizedActivations& out, int64_t at) {
  const float most_code = out.high ? 32512.0f : 127.0f;
  float lanes[GROUP] = {};
  std::memcpy(lanes, x, count * sizeof(float));
  float most = 0.0f, poison = 0.0f;
  for (float value : lanes) {
    const float magnitude = std::fabs(value);
    most = most > magnitude ? most : magnitude;
    poison = poison + value * 0.0f;
  }
  const float inverse = most > 1e-30f && poison == 0.0f ? most_code / most : 0.0f;
  out.scales[at] = most / most_code + poison;
  int32_t codes[GROUP], total = 0;
  for (int half = 0; half < GROUP; half += TILE) {
    const F32x16 clean = poison == 0.0f ? load(lanes + half) : set1(0.0f);
    round_to_int(codes + half, mul(clean, set1(inverse)));
  }
  for (int i = 0; i < GROUP; ++i) {
    const int8_t low = int8_t(codes[i]);
    out.low[at * GROUP + i] = low;
    if (out.high) out.high[at * GROUP + i] = int8_t((codes[i] - low) / 256);
    total += codes[i];
  }
  out.sums[at] = total;
}

void quantize(const Weight& w, const float* x, const QuantizedActivations& out, int64_t begin, int64_t end) {
  const int64_t G = w.groups(), per_unit = w.groups_per_unit();
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t g = 0; g < G; ++g) {
      const int64_t unit = g / per_unit, unit_end = (unit + 1) * w.unit < w.K ? (unit + 1) * w.unit : w.K;
      const int64_t k = unit * w.unit + (g % per_unit) * GROUP;
      const int count = unit_end - k < GROUP ? int(unit_end - k) : GROUP;
      quantize_group(x + t * w.K + k, count, out, t * G + g);
    }
  }
}

inline float weight_at(const Weight& w, int64_t tile, int lane, int64_t k) {
  const int64_t dense = (tile * w.K + k) * TILE + lane;
  if (w.format == Format::f32) return static_cast<const float*>(w.values)[dense];
  const uint16_t* halves = static_cast<const uint16_t*>(w.values);
  if (w.format == Format::f16) return f32_of_f16(halves[dense]);
  if (w.format == Format::bf16) {
    const uint32_t bits = uint32_t(halves[dense]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  const int64_t unit = k / w.unit, in_unit = k % w.unit, i = in_unit % GROUP;
  const int64_t group = tile * w.groups() + unit * w.groups_per_unit() + in_unit / GROUP;
  const float scale = f32_of_f16(w.scales[group * TILE + lane]);
  const uint8_t* codes = static_cast<const uint8_t*>(w.values);
  const int64_t quad = i / 4, byte = lane * 4 + i % 4;
  if (w.format == Format::q8) return float(int(codes[(group * 8 + quad) * 64 + byte]) - 128) * scale;
  const uint8_t pair = codes[(group * 4 + quad % 4) * 64 + byte];
  const float product = float(quad < 4 ? pair & 15 : pair >> 4) * scale;
  return product + f32_of_f16(w.minimums[group * TILE + lane]);
}

// Adding zero turns -0 into +0, so a sum over ranks of one row and zeros keeps its bits.
void dequantize_row(const Weight& w, int64_t row, float* out) {
  for (int64_t k = 0; k < w.K; ++k) out[k] = weight_at(w, row / TILE, int(row % TILE), k) + 0.0f;
}

}  // namespace
