// Sixteen lanes in plain C++: the definition that the other two files repeat with vector instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define UNROLL

namespace {

// One sum at a time: lanes in memory gain nothing from blocks.
constexpr int MOST_SUMS = 1;
constexpr int MOST_CHAINS = 1;

struct F32x16 {
  float lane[16];
};
struct I32x16 {
  int32_t lane[16];
};
struct U8x64 {
  uint8_t byte[64];
};

#define EACH_LANE for (int i = 0; i < 16; ++i)

inline F32x16 set1(float value) {
  F32x16 r;
  EACH_LANE r.lane[i] = value;
  return r;
}
inline F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
inline void store(float* p, F32x16 x) { std::memcpy(p, x.lane, sizeof x.lane); }

inline float f32_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float f32_of_f16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
  if (exponent == 31) return f32_of_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return f32_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  return f32_of_bits(sign) + (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
}
inline F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  EACH_LANE r.lane[i] = f32_of_f16(p[i]);
  return r;
}
inline F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  EACH_LANE r.lane[i] = f32_of_bits(uint32_t(p[i]) << 16);
  return r;
}
inline F32x16 load_i8(const int8_t* p) {
  F32x16 r;
  EACH_LANE r.lane[i] = float(p[i]);
  return r;
}

#define LANEWISE(name, expression)              \
  inline F32x16 name(F32x16 a, F32x16 b) {      \
    F32x16 r;                                   \
    EACH_LANE {                                 \
      const float x = a.lane[i], y = b.lane[i]; \
      r.lane[i] = expression;                   \
    }                                           \
    return r;                                   \
  }
LANEWISE(add, x + y)
LANEWISE(sub, x - y)
LANEWISE(mul, x* y)
LANEWISE(div, x / y)
LANEWISE(max, x > y ? x : y)
LANEWISE(min, x < y ? x : y)
#undef LANEWISE

inline F32x16 abs(F32x16 x) {
  EACH_LANE x.lane[i] = std::fabs(x.lane[i]);
  return x;
}
// a * b + c, rounded once.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  EACH_LANE c.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}
inline F32x16 rint(F32x16 x) {
  EACH_LANE x.lane[i] = std::nearbyint(x.lane[i]);
  return x;
}
// x * 2^n where n is an integer from -126 to 127, and NaN where x is; anything else elsewhere.
inline F32x16 times_exp2(F32x16 x, F32x16 n) {
  EACH_LANE if (n.lane[i] >= -126.0f && n.lane[i] <= 127.0f) x.lane[i] *=
      f32_of_bits(uint32_t(int32_t(n.lane[i]) + 127) << 23);
  return x;
}
// 0 in the lanes where a < b, otherwise x.
inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 x) {
  EACH_LANE x.lane[i] = a.lane[i] < b.lane[i] ? 0.0f : x.lane[i];
  return x;
}
// x in lanes begin .. end - 1, otherwise `other`.
inline F32x16 keep_lanes(F32x16 x, int begin, int end, F32x16 other) {
  EACH_LANE x.lane[i] = i >= begin && i < end ? x.lane[i] : other.lane[i];
  return x;
}

// Lanes i and i + 8, then i and i + 4, i + 2, i + 1: one fixed tree on every instruction set.
inline float add_lanes(F32x16 x) {
  float lanes[16];
  store(lanes, x);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  return lanes[0];
}

inline float first_lane(F32x16 x) { return x.lane[0]; }
inline float max_lanes(F32x16 x) {
  float lanes[16];
  store(lanes, x);
  float most = lanes[0];
  for (int i = 1; i < 16; ++i) most = most > lanes[i] ? most : lanes[i];
  return most;
}

inline I32x16 iset1(int32_t value) {
  I32x16 r;
  EACH_LANE r.lane[i] = value;
  return r;
}
inline F32x16 to_f32(I32x16 x) {
  F32x16 r;
  EACH_LANE r.lane[i] = float(x.lane[i]);
  return r;
}
// 256 * high + low.
inline I32x16 join_bytes(I32x16 high, I32x16 low) {
  EACH_LANE low.lane[i] += high.lane[i] * 256;
  return low;
}
inline I32x16 round_to_int(F32x16 x) {
  I32x16 r;
  EACH_LANE r.lane[i] = int32_t(std::nearbyint(x.lane[i]));
  return r;
}
// The bits of |x|, which as integers have the order of the numbers; infinity and NaN come last.
inline I32x16 magnitude_bits(F32x16 x) {
  I32x16 r;
  std::memcpy(r.lane, &x, sizeof r.lane);
  EACH_LANE r.lane[i] &= 0x7fffffff;
  return r;
}
inline I32x16 max(I32x16 a, I32x16 b) {
  EACH_LANE a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
inline int32_t max_lanes(I32x16 x) {
  int32_t most = x.lane[0];
  EACH_LANE most = most > x.lane[i] ? most : x.lane[i];
  return most;
}
inline I32x16 add(I32x16 a, I32x16 b) {
  EACH_LANE a.lane[i] += b.lane[i];
  return a;
}
inline int32_t add_lanes(I32x16 x) {
  int32_t sum = 0;
  EACH_LANE sum += x.lane[i];
  return sum;
}
// x = 256 * high + low with both in -128 .. 127: the high one, of which `store_bytes` takes the lowest byte of a lane.
inline I32x16 high_bytes(I32x16 x) {
  EACH_LANE x.lane[i] = (x.lane[i] + 128) >> 8;
  return x;
}
inline void store_bytes(int8_t* p, I32x16 x) { EACH_LANE p[i] = int8_t(x.lane[i]); }
inline U8x64 load_bytes(const uint8_t* p) {
  U8x64 r;
  std::memcpy(r.byte, p, 64);
  return r;
}
inline U8x64 low_nibbles(U8x64 x) {
  for (auto& b : x.byte) b &= 15;
  return x;
}
inline U8x64 high_nibbles(U8x64 x) {
  for (auto& b : x.byte) b >>= 4;
  return x;
}
// Lane i adds the four products of unsigned bytes 4i .. 4i + 3 with the four signed bytes of `quad`.
inline I32x16 dot(I32x16 sum, U8x64 bytes, int32_t quad) {
  int8_t x[4];
  std::memcpy(x, &quad, 4);
  EACH_LANE for (int j = 0; j < 4; ++j) sum.lane[i] += int32_t(bytes.byte[4 * i + j]) * x[j];
  return sum;
}

// sum[i] += round(x[i] * 2^32); any number where that is too large.
inline void add_fixed(int64_t* sum, F32x16 x) {
  EACH_LANE sum[i] = int64_t(uint64_t(sum[i]) + uint64_t(std::llrint(double(x.lane[i]) * 0x1p32)));
}
// float32(sum[i]), rounded once, times 2^-32.
inline F32x16 load_fixed(const int64_t* sum) {
  F32x16 r;
  EACH_LANE r.lane[i] = float(sum[i]) * 0x1p-32f;
  return r;
}
// 64-bit integers, and what choosing among lanes needs. Bit i of a mask is lane i.
struct I64x16 {
  int64_t lane[16];
};
struct Mask16 {
  bool lane[16];
};
inline Mask16 at_least(F32x16 a, F32x16 b) {
  Mask16 r;
  EACH_LANE r.lane[i] = a.lane[i] >= b.lane[i];
  return r;
}
// Where one of the two is not a number.
inline Mask16 unordered(F32x16 a, F32x16 b) {
  Mask16 r;
  EACH_LANE r.lane[i] = a.lane[i] != a.lane[i] || b.lane[i] != b.lane[i];
  return r;
}
inline uint32_t bits(Mask16 mask) {
  uint32_t r = 0;
  EACH_LANE r |= uint32_t(mask.lane[i]) << i;
  return r;
}
// x without its fraction, 0 <= x < 2^52.
inline I64x16 truncate(F32x16 x) {
  I64x16 r;
  EACH_LANE r.lane[i] = int64_t(x.lane[i]);
  return r;
}
inline I64x16 no_sum() { return I64x16{}; }
inline I64x16 add_where(I64x16 sum, Mask16 mask, I64x16 x) {
  EACH_LANE sum.lane[i] += mask.lane[i] ? x.lane[i] : 0;
  return sum;
}
inline I64x16 add(I64x16 a, I64x16 b) {
  EACH_LANE a.lane[i] += b.lane[i];
  return a;
}
inline int64_t add_lanes(I64x16 x) {
  int64_t sum = 0;
  EACH_LANE sum += x.lane[i];
  return sum;
}
inline I32x16 load_int(const int32_t* p) {
  I32x16 r;
  std::memcpy(r.lane, p, sizeof r.lane);
  return r;
}
inline I32x16 count_from(int32_t first) {
  I32x16 r;
  EACH_LANE r.lane[i] = first + i;
  return r;
}
// The lanes of the mask, side by side. May write 16 lanes.
inline void store_chosen(float* p, F32x16 x, uint32_t mask) { EACH_LANE if (mask >> i & 1)* p++ = x.lane[i]; }
inline void store_chosen(int32_t* p, I32x16 x, uint32_t mask) { EACH_LANE if (mask >> i & 1)* p++ = x.lane[i]; }
#undef EACH_LANE

}  // namespace
