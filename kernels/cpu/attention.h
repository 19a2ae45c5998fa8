// Attention over a paged cache without Python: the cache of one layer, the tasks that a step is cut into, and what the
// kernels are told. Whoever shares the tasks out, their number and order never change a bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinycluster {

constexpr int BLOCK = 64;    // positions per block of the online softmax, whatever the cache's block size
constexpr int KV_TILE = 16;  // positions that lie side by side in the cache

// Keys and values of one layer. A tile holds 16 positions of one KV head:
//   keys    (blocks, KV heads, block_tokens / 16, C, 16)
//   values  (blocks, KV heads, block_tokens / 16, 16, padded C)
struct KVCache {
  uint8_t* keys;
  uint8_t* values;
  int64_t num_blocks, KV, C, block_tokens;

  int64_t padded_C() const { return (C + KV_TILE - 1) / KV_TILE * KV_TILE; }
  int64_t key_tile_bytes() const { return 4 * C * KV_TILE; }
  int64_t value_tile_bytes() const { return 4 * padded_C() * KV_TILE; }
  // The number of the tile that holds a position of the request with this block table. block_tokens is a power of two.
  int64_t tile(const int32_t* block_table, int64_t kv_head, int64_t position) const {
    const int64_t block = block_table[position >> __builtin_ctzll(block_tokens)];
    return (block * KV + kv_head) * (block_tokens / KV_TILE) + (position & (block_tokens - 1)) / KV_TILE;
  }
};

// Where a step's tokens belong. Request r owns tokens row_start[r] .. row_start[r + 1] - 1, at consecutive positions.
struct KVStep {
  const int32_t* positions;     // (T,)
  const int32_t* row_start;     // (R + 1,)
  const int32_t* block_tables;  // (R, block_table_stride)
  int64_t T, R, block_table_stride;
};

// The first rule that a step breaks on this cache, as a sentence, or null.
const char* broken_rule(const KVStep& step, const KVCache& cache);

struct KVWriteArgs {
  const KVCache* cache;
  const KVStep* step;
  const float* k;  // (T, KV * C)
  const float* v;  // (T, KV * C)
};

struct AttentionArgs {
  const KVCache* cache;
  const KVStep* step;
  const float* q;  // (T, H * C)
  int64_t H;
  int64_t window;  // positions that a query sees, itself included; NO_WINDOW sees all
  float scale;
  float* out;  // (T, H * C)
};
constexpr int64_t NO_WINDOW = INT64_MAX;

// Query heads first_head .. first_head + num_heads - 1 of a rank read the same KV head of it.
struct HeadGroup {
  int64_t kv_head, first_head, num_heads;
};
std::vector<HeadGroup> head_groups(const int32_t* kv_head_of_head, int64_t num_heads);

// Up to ATTENTION_ROWS (token, head) pairs of one request that read the same KV head.
constexpr int ATTENTION_ROWS = 32;
struct AttentionTask {
  int64_t request;
  HeadGroup heads;
  int64_t first_item, num_items;  // item i is the request's token i / num_heads with head first_head + i % num_heads
};

// The tasks of a step, the same for every layer with these heads. The longest come first.
class AttentionTasks {
 public:
  explicit AttentionTasks(std::vector<HeadGroup> groups) : groups_(std::move(groups)) {}

  // Replaces the list by that of another step; allocates only while lists still grow.
  void deal(const KVStep& step);

  int64_t size() const { return int64_t(tasks_.size()); }
  const AttentionTask& operator[](int64_t i) const { return tasks_[size_t(i)]; }

 private:
  std::vector<HeadGroup> groups_;
  std::vector<AttentionTask> tasks_;
};

}  // namespace tinycluster
