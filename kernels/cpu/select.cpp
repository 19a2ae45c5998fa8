// Apart from the kernels, which are compiled per instruction set: the standard library's templates would leak from one
// set into another.
#include "select.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

namespace tinycluster {

void top_k(const float* x, int64_t O, int64_t V, int64_t k, int32_t* out) {
  std::vector<int32_t> columns(V);
  for (int64_t row = 0; row < O; ++row, x += V, out += k) {
    std::iota(columns.begin(), columns.end(), 0);
    const auto is_before = [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; };
    std::partial_sort(columns.begin(), columns.begin() + k, columns.end(), is_before);
    std::copy_n(columns.begin(), k, out);
  }
}

float kth_largest(float* x, int64_t n, int64_t k) {
  std::nth_element(x, x + k - 1, x + n, std::greater<float>());
  return x[k - 1];
}

}  // namespace tinycluster
