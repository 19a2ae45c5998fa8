// What the probes compute with.
#pragma once

#include <cstdint>

namespace tinycluster {

// All operands are 1.
struct alignas(64) ProbeOperands {
  static constexpr int64_t ROUNDS = 1 << 20;  // four products a round and lane are still exact in float32
  static constexpr int LINES = 8, ROWS = 4, COLUMNS = 3;
  uint8_t bytes[LINES][ROWS][64];
  float values[LINES][ROWS][16];
  int32_t quads[COLUMNS];
  float factors[COLUMNS];
};

}  // namespace tinycluster
