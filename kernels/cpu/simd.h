// Sixteen lanes of arithmetic, written three times: AVX-512, AVX2 and plain C++. Kernels use only these names, so every
// instruction set computes the same lanes with the same roundings and gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#ifdef TINYCLUSTER_X86
#include <immintrin.h>
#endif

#if defined(ISA_avx512) || defined(ISA_vnni)
#include "simd_avx512.h"
#elif defined(ISA_avx2)
#include "simd_avx2.h"
#else
#include "simd_plain.h"
#endif

// A block's sums stay in registers only if what adds to them is part of the same function.
#define INLINE inline __attribute__((always_inline))

// Everything below is built from the lane operations above.
namespace {

constexpr int LANES = 16;

inline int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
constexpr int32_t INFINITY_BITS = 0x7f800000;
inline float float_of_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// The first n lanes from memory, zeros in the rest.
inline F32x16 load_first(const float* p, int n) {
  if (n >= LANES) return load(p);
  float lanes[LANES] = {};
  std::memcpy(lanes, p, n * sizeof(float));
  return load(lanes);
}

inline void store_first(float* p, F32x16 x, int n) {
  if (n >= LANES) return store(p, x);
  float lanes[LANES];
  store(lanes, x);
  std::memcpy(p, lanes, n * sizeof(float));
}

// exp(x) by n = rint(x / ln 2), a polynomial on the remainder (Cephes expf, Moshier 1989), and an exact power of two.
// Below -87 the result is 0, above 88 it is exp(88); the error is under 1.5 units in the last place between.
// N vectors take each step together: one alone waits for its own last step most of the time.
template <int N>
INLINE void exp(F32x16 (&x)[N]) {
  F32x16 n[N], r[N], p[N];
#define EACH UNROLL for (int i = 0; i < N; ++i)
  EACH r[i] = min(set1(88.0f), x[i]);
  EACH n[i] = rint(mul(r[i], set1(1.44269504f)));
  EACH r[i] = fma(n[i], set1(-0.693359375f), r[i]);
  EACH r[i] = fma(n[i], set1(2.12194440e-4f), r[i]);
  EACH p[i] = fma(set1(1.9875691500e-4f), r[i], set1(1.3981999507e-3f));
  EACH p[i] = fma(p[i], r[i], set1(8.3334519073e-3f));
  EACH p[i] = fma(p[i], r[i], set1(4.1665795894e-2f));
  EACH p[i] = fma(p[i], r[i], set1(1.6666665459e-1f));
  EACH p[i] = fma(p[i], r[i], set1(5.0000001201e-1f));
  EACH p[i] = add(fma(p[i], mul(r[i], r[i]), r[i]), set1(1.0f));
  EACH x[i] = zero_where_less(x[i], set1(-87.0f), times_exp2(p[i], n[i]));
#undef EACH
}

inline F32x16 exp(F32x16 x) {
  F32x16 one[] = {x};
  exp(one);
  return one[0];
}

}  // namespace
