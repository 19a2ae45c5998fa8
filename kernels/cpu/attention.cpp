#include "attention.h"

#include <algorithm>

namespace tinycluster {

const char* broken_rule(const KVStep& step, const KVCache& cache) {
  if (step.row_start[0] != 0 || step.row_start[step.R] != step.T) return "row_start must span T";
  for (int64_t r = 0; r < step.R; ++r) {
    const int64_t begin = step.row_start[r], end = step.row_start[r + 1];
    if (begin > end) return "row_start must ascend";
    for (int64_t t = begin; t < end; ++t)
      if (step.positions[t] != step.positions[begin] + (t - begin) || step.positions[t] < 0)
        return "a request's positions must be consecutive";
    const int64_t blocks = begin < end ? step.positions[end - 1] / cache.block_tokens + 1 : 0;
    if (blocks > step.block_table_stride) return "a block table is too short";
    for (int64_t i = 0; i < blocks; ++i) {
      const int32_t block = step.block_tables[r * step.block_table_stride + i];
      if (block < 0 || block >= cache.num_blocks) return "a block table names a block that does not exist";
    }
  }
  return nullptr;
}

std::vector<HeadGroup> head_groups(const int32_t* kv_head_of_head, int64_t num_heads) {
  std::vector<HeadGroup> groups;
  for (int64_t head = 0; head < num_heads; ++head) {
    if (groups.empty() || groups.back().kv_head != kv_head_of_head[head])
      groups.push_back({kv_head_of_head[head], head, 0});
    ++groups.back().num_heads;
  }
  return groups;
}

void AttentionTasks::deal(const KVStep& step) {
  tasks_.clear();
  for (int64_t r = 0; r < step.R; ++r)
    for (const HeadGroup& group : groups_) {
      const int64_t items = (step.row_start[r + 1] - step.row_start[r]) * group.num_heads;
      // Whole tokens, so that the rows of a token stay together.
      const int64_t most = std::max<int64_t>(1, ATTENTION_ROWS / group.num_heads) * group.num_heads;
      for (int64_t item = 0; item < items;) {
        const int64_t count = std::min({most, int64_t(ATTENTION_ROWS), items - item});
        tasks_.push_back({r, group, item, count});
        item += count;
      }
    }
  // The last tokens of a prompt see the most positions.
  std::reverse(tasks_.begin(), tasks_.end());
}

}  // namespace tinycluster
