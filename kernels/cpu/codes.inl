// Activations rounded to integers, and weights turned back into floats.

namespace {

using namespace tinycluster;

// The record of one group of a block of n tokens; see Codes.
struct CodesRecord {
  uint8_t* at;
  int bits;
  int64_t n;

  int8_t* quad(int plane, int j, int64_t t) const {
    return reinterpret_cast<int8_t*>(at) + ((plane * 8 + j) * n + t) * 4;
  }
  uint8_t* tail(int64_t index) const { return at + (GROUP * bits / 8 + index * 4) * n; }
  float* scales() const { return reinterpret_cast<float*>(tail(0)); }
  int32_t* offsets() const { return reinterpret_cast<int32_t*>(tail(1)); }
  float* sums() const { return reinterpret_cast<float*>(tail(2)); }
};

inline CodesRecord codes_record(const Codes& codes, uint8_t* block, int64_t g, int64_t n) {
  return {block + g * n * Codes::token_bytes(codes.bits), codes.bits, n};
}

// The lowest bytes of 16 codes: four quads, between which lie those of the other tokens.
inline void store_quads(int8_t* quad, I32x16 codes, int64_t n) {
  int8_t bytes[LANES];
  store_bytes(bytes, codes);
  for (int j = 0; j < 4; ++j) std::memcpy(quad + j * n * 4, bytes + j * 4, 4);
}

// Up to 32 numbers as integers of at most most_code in magnitude, times a scale.
struct RoundedGroup {
  I32x16 codes[2];
  float scale;
};

// code = rint(x * (most_code / max|x|)), scale = max|x| / most_code; most_code is 127 or 127 * 256, so that the high
// byte is an int8 again. Where max|x| is so small that the quotient could overflow the codes are 0. A group with a NaN
// or an infinity gets the scale NaN, which the checks of later layers turn into an error.
inline RoundedGroup round_group(const float* x, int count, float most_code) {
  F32x16 first = load_first(x, count), second = count > LANES ? load_first(x + LANES, count - LANES) : set1(0.0f);
  const int32_t most_bits = max_lanes(max(magnitude_bits(first), magnitude_bits(second)));
  const bool is_finite = most_bits < INFINITY_BITS;
  if (!is_finite) first = second = set1(0.0f);
  const float most = float_of_bits(most_bits);
  const F32x16 inverse = set1(is_finite && most > 1e-30f ? most_code / most : 0.0f);
  const float scale = is_finite ? most / most_code : std::numeric_limits<float>::quiet_NaN();
  return {{round_to_int(mul(first, inverse)), round_to_int(mul(second, inverse))}, scale};
}

void quantize_group(const float* x, int count, const CodesRecord& record, int64_t t) {
  const RoundedGroup group = round_group(x, count, record.bits == 16 ? 32512.0f : 127.0f);
  const I32x16* codes = group.codes;
  for (int half = 0; half < 2; ++half) {
    if (record.bits == 16) store_quads(record.quad(0, 4 * half, t), high_bytes(codes[half]), record.n);
    store_quads(record.quad(record.bits / 8 - 1, 4 * half, t), codes[half], record.n);
  }
  const int32_t total = add_lanes(add(codes[0], codes[1]));
  record.scales()[t] = group.scale;
  record.offsets()[t] = -128 * total;
  record.sums()[t] = group.scale * float(total);
}

void quantize(const Weight& w, const float* x, const Codes& codes, int64_t begin, int64_t end) {
  const int64_t per_unit = w.groups_per_unit;
  for (int64_t token = begin; token < end; token += CODE_BLOCK) {
    const int64_t n = end - token < CODE_BLOCK ? end - token : CODE_BLOCK;
    for (int64_t g = 0; g < codes.groups; ++g) {
      const int64_t unit = g / per_unit, unit_end = (unit + 1) * w.unit < w.K ? (unit + 1) * w.unit : w.K;
      const int64_t k = unit * w.unit + (g % per_unit) * GROUP;
      const int count = unit_end - k < GROUP ? int(unit_end - k) : GROUP;
      const CodesRecord record = codes_record(codes, codes.block(token), g, n);
      for (int64_t t = 0; t < n; ++t) quantize_group(x + (token + t) * w.K + k, count, record, t);
    }
  }
}

inline float weight_at(const Weight& w, int64_t tile, int lane, int64_t k) {
  const uint8_t* values = w.values + tile * w.tile_bytes;
  if (w.format == Format::f32) return reinterpret_cast<const float*>(values)[k * TILE + lane];
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(values);
  if (w.format == Format::f16) return f32_of_f16(halves[k * TILE + lane]);
  if (w.format == Format::bf16) {
    return float_of_bits(int32_t(uint32_t(halves[k * TILE + lane]) << 16));
  }
  const int64_t unit = k / w.unit, in_unit = k % w.unit, quad = in_unit % GROUP / 4, byte = lane * 4 + in_unit % 4;
  const uint8_t* record = values + (unit * w.groups_per_unit + in_unit / GROUP) * w.record_bytes;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(record + TILE * GROUP / (w.format == Format::q8 ? 1 : 2));
  const float scale = f32_of_f16(scales[lane]);
  if (w.format == Format::q8) return float(int(record[quad * 64 + byte]) - 128) * scale;
  const uint8_t pair = record[quad % 4 * 64 + byte];
  const float product = float(quad < 4 ? pair & 15 : pair >> 4) * scale;
  return product + f32_of_f16(scales[TILE + lane]);
}

// Adding zero turns -0 into +0, so a sum over ranks of one row and zeros keeps its bits.
void dequantize_row(const Weight& w, int64_t row, float* out) {
  for (int64_t k = 0; k < w.K; ++k) out[k] = weight_at(w, row / TILE, int(row % TILE), k) + 0.0f;
}

}  // namespace
