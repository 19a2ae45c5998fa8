// The largest of a row's values. Ties go to the lower column, so the result does not depend on how rows are cut.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace tinycluster {

// x (O, V) -> out (O,)
inline void argmax(const float* x, int64_t O, int64_t V, int32_t* out) {
  for (int64_t row = 0; row < O; ++row, x += V) out[row] = int32_t(std::max_element(x, x + V) - x);
}

// x (O, V) -> out (O, k): columns of the k largest values, largest first.
inline void top_k(const float* x, int64_t O, int64_t V, int64_t k, int32_t* out) {
  std::vector<int32_t> columns(V);
  for (int64_t row = 0; row < O; ++row, x += V, out += k) {
    std::iota(columns.begin(), columns.end(), 0);
    const auto is_before = [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; };
    std::partial_sort(columns.begin(), columns.begin() + k, columns.end(), is_before);
    std::copy_n(columns.begin(), k, out);
  }
}

}  // namespace tinycluster
