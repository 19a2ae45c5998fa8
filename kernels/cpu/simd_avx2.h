// Sixteen lanes as two AVX2 registers. See simd_plain.h for what each operation means.
#pragma once

#define UNROLL _Pragma("GCC unroll 8")

namespace {

// Sixteen registers hold a block of four sums; thirty-two hold eight.
constexpr int MOST_SUMS = 4;
// Sums of attention that need no integers beside them: two registers each.
constexpr int MOST_CHAINS = 6;

struct F32x16 {
  __m256 low, high;
};
struct I32x16 {
  __m256i low, high;
};
struct U8x64 {
  __m256i low, high;
};

inline F32x16 set1(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline float f32_of_f16(uint16_t half) { return _cvtsh_ss(half); }
inline F32x16 load_f16(const uint16_t* p) {
  const __m128i* v = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1))};
}
inline __m256 f32_of_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F32x16 load_bf16(const uint16_t* p) {
  const __m128i* v = reinterpret_cast<const __m128i*>(p);
  return {f32_of_bf16(_mm_loadu_si128(v)), f32_of_bf16(_mm_loadu_si128(v + 1))};
}
inline __m256 f32_of_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F32x16 load_i8(const int8_t* p) { return {f32_of_i8(p), f32_of_i8(p + 8)}; }

#define LANEWISE(name, instruction) \
  inline F32x16 name(F32x16 a, F32x16 b) { return {instruction(a.low, b.low), instruction(a.high, b.high)}; }
LANEWISE(add, _mm256_add_ps)
LANEWISE(sub, _mm256_sub_ps)
LANEWISE(mul, _mm256_mul_ps)
LANEWISE(div, _mm256_div_ps)
LANEWISE(max, _mm256_max_ps)
LANEWISE(min, _mm256_min_ps)
#undef LANEWISE

inline F32x16 abs(F32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline __m256 rint(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32x16 rint(F32x16 x) { return {rint(x.low), rint(x.high)}; }
inline __m256 exp2_of_integer(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F32x16 times_exp2(F32x16 x, F32x16 n) {
  return {_mm256_mul_ps(x.low, exp2_of_integer(n.low)), _mm256_mul_ps(x.high, exp2_of_integer(n.high))};
}
inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 x) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), x.low),
          _mm256_andnot_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ), x.high)};
}
inline F32x16 keep_lanes(F32x16 x, int begin, int end, F32x16 other) {
  float kept[16], lanes[16];
  store(lanes, x);
  store(kept, other);
  for (int i = begin; i < end; ++i) kept[i] = lanes[i];
  return load(kept);
}

inline float add_lanes(F32x16 x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float first_lane(F32x16 x) { return _mm256_cvtss_f32(x.low); }
inline float max_lanes(F32x16 x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline I32x16 iset1(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline F32x16 to_f32(I32x16 x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline I32x16 join_bytes(I32x16 high, I32x16 low) {
  return {_mm256_add_epi32(_mm256_slli_epi32(high.low, 8), low.low),
          _mm256_add_epi32(_mm256_slli_epi32(high.high, 8), low.high)};
}
inline I32x16 round_to_int(F32x16 x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline I32x16 magnitude_bits(F32x16 x) {
  const F32x16 magnitude = abs(x);
  return {_mm256_castps_si256(magnitude.low), _mm256_castps_si256(magnitude.high)};
}
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
inline int32_t max_lanes(I32x16 x) {
  const __m256i eight = _mm256_max_epi32(x.low, x.high);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_srli_si128(two, 4)));
}
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline int32_t add_lanes(I32x16 x) {
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 4)));
}
inline __m256i high_bytes(__m256i x) { return _mm256_srai_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(128)), 8); }
inline I32x16 high_bytes(I32x16 x) { return {high_bytes(x.low), high_bytes(x.high)}; }
inline void store_bytes(int8_t* p, I32x16 x) {
  int32_t lanes[16];
  __m256i* v = reinterpret_cast<__m256i*>(lanes);
  _mm256_storeu_si256(v, x.low);
  _mm256_storeu_si256(v + 1, x.high);
  for (int i = 0; i < 16; ++i) p[i] = int8_t(lanes[i]);
}
inline U8x64 load_bytes(const uint8_t* p) {
  const __m256i* v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
inline U8x64 low_nibbles(U8x64 x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline U8x64 high_nibbles(U8x64 x) { return low_nibbles({_mm256_srli_epi16(x.low, 4), _mm256_srli_epi16(x.high, 4)}); }

// Even and odd bytes apart in 16 bits: the pairwise byte product would saturate.
inline __m256i dot(__m256i sum, __m256i bytes, __m256i x_even, __m256i x_odd) {
  const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(bytes, 8);
  const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
  return _mm256_add_epi32(sum, pairs);
}
inline I32x16 dot(I32x16 sum, U8x64 bytes, int32_t quad) {
  const __m256i x = _mm256_set1_epi32(quad);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
  return {dot(sum.low, bytes.low, x_even, x_odd), dot(sum.high, bytes.high, x_even, x_odd)};
}

// AVX2 cannot convert 64-bit integers, so these two go lane by lane.
inline void add_fixed(int64_t* sum, F32x16 x) {
  float lanes[16];
  store(lanes, x);
  for (int i = 0; i < 16; ++i)
    sum[i] = int64_t(uint64_t(sum[i]) + uint64_t(_mm_cvtsd_si64(_mm_set_sd(double(lanes[i]) * 0x1p32))));
}
inline F32x16 load_fixed(const int64_t* sum) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = float(sum[i]) * 0x1p-32f;
  return load(lanes);
}

struct I64x16 {
  __m256i quarter[4];
};
struct Mask16 {
  __m256 low, high;
};
inline Mask16 at_least(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ)};
}
inline Mask16 unordered(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.low, b.low, _CMP_UNORD_Q), _mm256_cmp_ps(a.high, b.high, _CMP_UNORD_Q)};
}
inline uint32_t bits(Mask16 mask) {
  return uint32_t(_mm256_movemask_ps(mask.low)) | uint32_t(_mm256_movemask_ps(mask.high)) << 8;
}
// 2^52 + n has n in its lowest bits.
inline __m256i truncate(__m128 x) {
  const __m256d whole = _mm256_round_pd(_mm256_cvtps_pd(x), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const __m256i anchor = _mm256_castpd_si256(_mm256_set1_pd(0x1p52));
  return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(whole, _mm256_set1_pd(0x1p52))), anchor);
}
inline I64x16 truncate(F32x16 x) {
  return {{truncate(_mm256_castps256_ps128(x.low)), truncate(_mm256_extractf128_ps(x.low, 1)),
           truncate(_mm256_castps256_ps128(x.high)), truncate(_mm256_extractf128_ps(x.high, 1))}};
}
inline I64x16 no_sum() {
  const __m256i zero = _mm256_setzero_si256();
  return {{zero, zero, zero, zero}};
}
inline I64x16 add(I64x16 a, I64x16 b) {
  for (int i = 0; i < 4; ++i) a.quarter[i] = _mm256_add_epi64(a.quarter[i], b.quarter[i]);
  return a;
}
inline __m256i widen(__m128 mask) { return _mm256_cvtepi32_epi64(_mm_castps_si128(mask)); }
inline I64x16 add_where(I64x16 sum, Mask16 mask, I64x16 x) {
  const __m256i wide[4] = {widen(_mm256_castps256_ps128(mask.low)), widen(_mm256_extractf128_ps(mask.low, 1)),
                           widen(_mm256_castps256_ps128(mask.high)), widen(_mm256_extractf128_ps(mask.high, 1))};
  for (int i = 0; i < 4; ++i) x.quarter[i] = _mm256_and_si256(x.quarter[i], wide[i]);
  return add(sum, x);
}
inline int64_t add_lanes(I64x16 x) {
  int64_t lanes[4], sum = 0;
  for (const __m256i& quarter : x.quarter) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), quarter);
    sum += lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }
  return sum;
}
inline I32x16 load_int(const int32_t* p) {
  const __m256i* v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
inline I32x16 count_from(int32_t first) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_add_epi32(_mm256_set1_epi32(first), lanes), _mm256_add_epi32(_mm256_set1_epi32(first + 8), lanes)};
}
inline void store_chosen(float* p, F32x16 x, uint32_t mask) {
  float lanes[16];
  store(lanes, x);
  for (; mask; mask &= mask - 1) *p++ = lanes[__builtin_ctz(mask)];
}
inline void store_chosen(int32_t* p, I32x16 x, uint32_t mask) {
  int32_t lanes[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), x.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + 8), x.high);
  for (; mask; mask &= mask - 1) *p++ = lanes[__builtin_ctz(mask)];
}

}  // namespace
