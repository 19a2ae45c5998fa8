// The largest of a row's values. Ties go to the lower column, so the result does not depend on how rows are cut.
#pragma once

#include <cstdint>

namespace tinycluster {

// x (O, V) -> out (O, k): columns of the k largest values, largest first.
void top_k(const float* x, int64_t O, int64_t V, int64_t k, int32_t* out);

// The k-th largest of x (n,), 1 <= k <= n, which is reordered. No value may be NaN.
float kth_largest(float* x, int64_t n, int64_t k);

}  // namespace tinycluster
