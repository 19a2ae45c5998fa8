// Attention over a paged cache without Python: the cache of one layer, the tasks that a step is cut into, and what the
// kernels are told. Whoever shares the tasks out, their number and order never change a bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinycluster {

constexpr int BLOCK = 64;     // positions per block of the online softmax, whatever the cache's block size
constexpr int SEGMENT = 256;  // positions whose blocks share an online softmax; a multiple of BLOCK
constexpr int KV_TILE = 16;   // positions that lie side by side in the cache
constexpr int KV_GROUP = 32;  // columns that share a scale

enum class KVFormat : int { f32, bf16, q8 };

// Keys and values of one layer: (blocks, KV heads, block_tokens / 16) tiles. A tile holds 16 positions of one KV head:
//   keys    codes (C, 16),         then for q8 scales (groups of 32 columns, 16) as float32
//   values  codes (16, padded C),  then for q8 scales (16, groups of 32 columns) as float32
struct KVCache {
  KVFormat format;
  uint8_t* keys;
  uint8_t* values;
  int64_t num_blocks, KV, C, block_tokens;

  int64_t padded_C() const { return (C + KV_TILE - 1) / KV_TILE * KV_TILE; }
  int64_t key_tile_bytes() const { return tile_bytes(C); }
  int64_t value_tile_bytes() const { return tile_bytes(padded_C()); }
  // The number of the tile that holds a position of the request with this block table. block_tokens is a power of two.
  int64_t tile(const int32_t* block_table, int64_t kv_head, int64_t position) const {
    const int64_t block = block_table[position >> __builtin_ctzll(block_tokens)];
    return (block * KV + kv_head) * (block_tokens / KV_TILE) + (position & (block_tokens - 1)) / KV_TILE;
  }

 private:
  int64_t tile_bytes(int64_t columns) const {
    const int64_t scale_bytes = format == KVFormat::q8 ? 4 * ((columns + KV_GROUP - 1) / KV_GROUP) : 0;
    return KV_TILE * (columns * (format == KVFormat::f32 ? 4 : format == KVFormat::bf16 ? 2 : 1) + scale_bytes);
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
inline int64_t first_visible(int64_t position, int64_t window) {
  return position >= window ? position + 1 - window : 0;
}

// Query heads first_head .. first_head + num_heads - 1 of a rank read the same KV head of it.
struct HeadGroup {
  int64_t kv_head, first_head, num_heads;
};
std::vector<HeadGroup> head_groups(const int32_t* kv_head_of_head, int64_t num_heads);

// Up to ATTENTION_ROWS (token, head) pairs of one request that read the same KV head, over some of its segments.
constexpr int ATTENTION_ROWS = 192;
struct AttentionTask {
  int64_t request;
  HeadGroup heads;
  int64_t first_item, num_items;  // item i is the request's token i / num_heads with head first_head + i % num_heads
  int64_t first_segment, end_segment;
  // Where several tasks share the segments of their rows; null and unused otherwise.
  float* parts;  // (segments of all these tasks, part_floats)
  int64_t first_segment_of_all;
  int32_t* unfinished;  // tasks of these that are still to finish in this layer
  int32_t num_tasks;
};

inline int64_t padded_rows(int64_t rows) { return (rows + 15) / 16 * 16; }
// What a segment gave some rows: for each the highest score, the sum of the weights, and (padded C,) weighted values.
inline int64_t part_floats(int64_t rows, int64_t padded_C) { return 2 * padded_rows(rows) + rows * padded_C; }

// The tasks of a step, the same for every layer with these heads, this head size and this window. They may run in
// any order on any threads, but a layer's tasks must all have finished before the next layer's begin.
class AttentionTasks {
 public:
  AttentionTasks(std::vector<HeadGroup> groups, int64_t padded_C, int64_t window)
      : groups_(std::move(groups)), padded_C_(padded_C), window_(window) {}

  // Replaces the list by that of another step; allocates only while lists still grow.
  void deal(const KVStep& step, int num_threads);

  int64_t size() const { return int64_t(tasks_.size()); }
  const AttentionTask& operator[](int64_t i) const { return tasks_[size_t(i)]; }

 private:
  void list_units(const KVStep& step, int num_threads);

  std::vector<HeadGroup> groups_;
  int64_t padded_C_, window_;
  std::vector<AttentionTask> units_, tasks_;  // a unit's rows see all their segments
  std::vector<int64_t> costs_;                // of the units, in rows times positions
  std::vector<float> parts_;
  std::vector<int32_t> unfinished_;
};

}  // namespace tinycluster
