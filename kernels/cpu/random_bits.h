// Randomness without state: 64 bits from (seed, position).
#pragma once

#include <cstdint>

namespace tinycluster {

// The output function of SplitMix64: a bijection of 64-bit numbers (Steele, Lea & Flood 2014, figure 17).
inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Output number `position` of the generator that starts at mix64(seed).
inline uint64_t random_bits(uint64_t seed, uint64_t position) {
  return mix64(mix64(seed) + (position + 1) * 0x9E3779B97F4A7C15u);
}

}  // namespace tinycluster
