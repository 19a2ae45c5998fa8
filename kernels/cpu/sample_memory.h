// What a thread keeps from one sampled row to the next: fresh pages cost more than the arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace tinycluster {

class SampleMemory {
 public:
  SampleScratch for_vocabulary(int64_t V) {
    const size_t size = size_t(V) + 2 * TILE;
    if (ids_.size() < size) {
      floats_.resize(4 * size);
      ids_.resize(size);
      masses_.resize(size / SAMPLE_CHUNK + 1);
    }
    const size_t stride = ids_.size();
    float* x = floats_.data();
    return {x, x + stride, x + 2 * stride, x + 3 * stride, ids_.data(), masses_.data()};
  }

 private:
  std::vector<float> floats_;
  std::vector<int32_t> ids_;
  std::vector<int64_t> masses_;
};

}  // namespace tinycluster
