// The table of native kernels: one instance per instruction set, all with the same bits.
//
//   T tokens   N output rows   K columns (k)   G groups of 32 along k   H query heads   C head_dim
#pragma once

#include <cstddef>
#include <cstdint>

namespace tinycluster {

enum class Format : int { f32, f16, bf16, q8, q4 };

constexpr int TILE = 16;   // output rows that one vector computes
constexpr int GROUP = 32;  // k-values that share a scale
constexpr int BLOCK = 64;  // positions per attention block, whatever the cache's block size

// A matrix (N, K) laid out for `linear`: tiles of 16 output rows, padded with zero rows.
//   dense   values (tiles, K, 16)
//   q8      codes  (tiles, G, 8 quads, 16 rows, 4) as code + 128;              scales (tiles, G, 16)
//   q4      codes  (tiles, G, 4 quads, 16 rows, 4), quad j low, j + 4 high;    scales, minimums (tiles, G, 16)
// k is cut into units of `unit` columns (the last may be short); groups restart at each unit.
struct Weight {
  Format format;
  int64_t N, K, unit;
  const void* values;
  const uint16_t* scales;
  const uint16_t* minimums;

  int64_t tiles() const { return (N + TILE - 1) / TILE; }
  int64_t units() const { return K ? (K + unit - 1) / unit : 0; }
  int64_t groups_per_unit() const { return (unit + GROUP - 1) / GROUP; }
  int64_t groups() const {  // of all units
    const int64_t last = K - (units() - 1) * unit;
    return K ? (units() - 1) * groups_per_unit() + (last + GROUP - 1) / GROUP : 0;
  }
  bool is_grouped() const { return format == Format::q8 || format == Format::q4; }
};

// Activations (T, K) rounded to integers in the weight's groups, which are padded with zeros. A 16-bit code is
// 256 * high + low; 8-bit codes have no high bytes.
struct QuantizedActivations {
  int8_t* high;   // (T, G, 32) or null
  int8_t* low;    // (T, G, 32)
  float* scales;  // (T, G)
  int32_t* sums;  // (T, G) of the codes
};

struct LinearArgs {
  const Weight* weight;
  const float* x;           // (T, K)
  QuantizedActivations xq;  // grouped formats only
  int64_t T;
  const float* bias;   // (N,) or null; float output only
  float* out;          // (T, N), or null
  int64_t* out_fixed;  // (T, N), or null
  float limit;         // of one unit's partial; fixed output only
};

struct AttentionArgs {
  const float* q;            // (T, H * C)
  const float* k_cache;      // (blocks, KV heads, C, block_tokens)
  const float* v_cache;      // (blocks, KV heads, block_tokens, padded C)
  const int32_t* positions;  // (T,)
  const int32_t* block_tables;
  int64_t block_table_stride;
  int64_t H, KV, C, padded_C, block_tokens;
  int64_t window;  // positions that a query sees, itself included
  float scale;
  float* out;  // (T, H * C)
};

// Up to ATTENTION_ROWS (token, head) pairs of one request that read the same KV head.
constexpr int ATTENTION_ROWS = 32;
struct AttentionTask {
  int64_t request, kv_head;
  int64_t first_token;            // row of T
  int64_t first_head, num_heads;  // the query heads of this KV head
  int64_t first_item, num_items;  // item i is token first_token + i / num_heads, head first_head + i % num_heads
};

struct Kernels {
  const char* name;
  // Tiles [begin, end) of the output rows, for every token. False if a partial does not fit.
  bool (*linear)(const LinearArgs&, int64_t begin, int64_t end);
  void (*quantize)(const Weight&, const float* x, const QuantizedActivations&, int64_t begin, int64_t end);
  void (*dequantize_row)(const Weight&, int64_t row, float* out);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t dim, float* out, int64_t begin, int64_t end);
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t begin, int64_t end);
  void (*add_fixed)(float* x, const int64_t* fixed, const float* bias, int64_t dim, int64_t begin, int64_t end);
  void (*rope)(float* x, const float* cos, const float* sin, const int32_t* positions, int64_t heads, int64_t head_dim,
               int64_t begin, int64_t end);
  void (*attention)(const AttentionArgs&, const AttentionTask&);
  void (*softmax)(const float* x, float* out, int64_t size);
};

extern const Kernels plain_kernels;
#ifdef TINYCLUSTER_X86
extern const Kernels avx2_kernels, avx512_kernels, vnni_kernels;
#endif

}  // namespace tinycluster
