// Sixteen lanes as one AVX-512 register. See simd_plain.h for what each operation means.
#pragma once

#define UNROLL _Pragma("GCC unroll 8")

namespace {

// Thirty-two registers hold a block of eight sums beside their integer sums.
constexpr int MOST_SUMS = 8;
// Sums of attention that need no integers beside them.
constexpr int MOST_CHAINS = 24;

using F32x16 = __m512;
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};

inline F32x16 set1(float value) { return _mm512_set1_ps(value); }
inline F32x16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x); }
inline float f32_of_f16(uint16_t half) { return _cvtsh_ss(half); }
inline F32x16 load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline F32x16 load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F32x16 add(F32x16 a, F32x16 b) { return _mm512_add_ps(a, b); }
inline F32x16 sub(F32x16 a, F32x16 b) { return _mm512_sub_ps(a, b); }
inline F32x16 mul(F32x16 a, F32x16 b) { return _mm512_mul_ps(a, b); }
inline F32x16 div(F32x16 a, F32x16 b) { return _mm512_div_ps(a, b); }
inline F32x16 max(F32x16 a, F32x16 b) { return _mm512_max_ps(a, b); }
inline F32x16 min(F32x16 a, F32x16 b) { return _mm512_min_ps(a, b); }
inline F32x16 abs(F32x16 x) { return _mm512_abs_ps(x); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F32x16 rint(F32x16 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F32x16 times_exp2(F32x16 x, F32x16 n) { return _mm512_scalef_ps(x, n); }
inline F32x16 zero_where_less(F32x16 a, F32x16 b, F32x16 x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}
inline F32x16 keep_lanes(F32x16 x, int begin, int end, F32x16 other) {
  const __mmask16 mask = __mmask16((0xffffu << begin) & (0xffffu >> (16 - end)));
  return _mm512_mask_mov_ps(other, mask, x);
}

inline float add_lanes(F32x16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float first_lane(F32x16 x) { return _mm512_cvtss_f32(x); }
inline float max_lanes(F32x16 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline I32x16 iset1(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline F32x16 to_f32(I32x16 x) { return _mm512_cvtepi32_ps(x.v); }
inline I32x16 join_bytes(I32x16 high, I32x16 low) { return {_mm512_add_epi32(_mm512_slli_epi32(high.v, 8), low.v)}; }
inline I32x16 round_to_int(F32x16 x) { return {_mm512_cvtps_epi32(x)}; }
inline I32x16 magnitude_bits(F32x16 x) { return {_mm512_castps_si512(_mm512_abs_ps(x))}; }
inline I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t max_lanes(I32x16 x) { return _mm512_reduce_max_epi32(x.v); }
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline int32_t add_lanes(I32x16 x) { return _mm512_reduce_add_epi32(x.v); }
inline I32x16 high_bytes(I32x16 x) { return {_mm512_srai_epi32(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)), 8)}; }
inline void store_bytes(int8_t* p, I32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
inline U8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline U8x64 low_nibbles(U8x64 x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
inline U8x64 high_nibbles(U8x64 x) { return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))}; }
inline I32x16 dot(I32x16 sum, U8x64 bytes, int32_t quad) {
  const __m512i x = _mm512_set1_epi32(quad);
#ifdef ISA_vnni
  return {_mm512_dpbusd_epi32(sum.v, bytes.v, x)};
#else
  // Even and odd bytes apart in 16 bits: the pairwise byte product would saturate.
  const __m512i even = _mm512_and_si512(bytes.v, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(bytes.v, 8);
  const __m512i x_even = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), x_odd = _mm512_srai_epi16(x, 8);
  const __m512i pairs = _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd));
  return {_mm512_add_epi32(sum.v, pairs)};
#endif
}

inline void add_fixed(int64_t* sum, F32x16 x) {
  const F32x16 scaled = _mm512_mul_ps(x, _mm512_set1_ps(0x1p32f));
  const __m512i low = _mm512_cvtps_epi64(_mm512_castps512_ps256(scaled));
  const __m512i high = _mm512_cvtps_epi64(_mm512_extractf32x8_ps(scaled, 1));
  _mm512_storeu_si512(sum, _mm512_add_epi64(_mm512_loadu_si512(sum), low));
  _mm512_storeu_si512(sum + 8, _mm512_add_epi64(_mm512_loadu_si512(sum + 8), high));
}
inline F32x16 load_fixed(const int64_t* sum) {
  const __m256 low = _mm512_cvtepi64_ps(_mm512_loadu_si512(sum)),
               high = _mm512_cvtepi64_ps(_mm512_loadu_si512(sum + 8));
  return _mm512_mul_ps(_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1), _mm512_set1_ps(0x1p-32f));
}

struct I64x16 {
  __m512i low, high;
};
using Mask16 = __mmask16;
inline Mask16 at_least(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Mask16 unordered(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
inline uint32_t bits(Mask16 mask) { return mask; }
inline I64x16 truncate(F32x16 x) {
  return {_mm512_cvttps_epi64(_mm512_castps512_ps256(x)), _mm512_cvttps_epi64(_mm512_extractf32x8_ps(x, 1))};
}
inline I64x16 no_sum() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline I64x16 add(I64x16 a, I64x16 b) { return {_mm512_add_epi64(a.low, b.low), _mm512_add_epi64(a.high, b.high)}; }
inline I64x16 add_where(I64x16 sum, Mask16 mask, I64x16 x) {
  return {_mm512_mask_add_epi64(sum.low, __mmask8(mask), sum.low, x.low),
          _mm512_mask_add_epi64(sum.high, __mmask8(mask >> 8), sum.high, x.high)};
}
inline int64_t add_lanes(I64x16 x) { return _mm512_reduce_add_epi64(_mm512_add_epi64(x.low, x.high)); }
inline I32x16 load_int(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32x16 count_from(int32_t first) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_add_epi32(_mm512_set1_epi32(first), lanes)};
}
inline void store_chosen(float* p, F32x16 x, uint32_t mask) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(__mmask16(mask), x));
}
inline void store_chosen(int32_t* p, I32x16 x, uint32_t mask) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(__mmask16(mask), x.v));
}

}  // namespace
