#include "attention.h"

#include <algorithm>
#include <numeric>

namespace tinycluster {

namespace {

constexpr int64_t PIECES_PER_THREAD = 6;  // so that the threads finish together
constexpr int64_t FEWEST_ROWS = 32;       // that share a block's conversion

// The rows of a unit: as many as leave each thread its pieces, when a unit's segments are pieces too.
int64_t rows_of_unit(int64_t rows_of_all, int64_t segments, int num_threads) {
  if (num_threads == 1) return ATTENTION_ROWS;
  return std::clamp<int64_t>(rows_of_all * segments / (PIECES_PER_THREAD * num_threads), FEWEST_ROWS, ATTENTION_ROWS);
}

}  // namespace

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

void AttentionTasks::list_units(const KVStep& step, int num_threads) {
  units_.clear(), costs_.clear();
  const int64_t items_of_all = step.T * (groups_.empty() ? 0 : groups_.back().first_head + groups_.back().num_heads);
  for (int64_t r = 0; r < step.R; ++r) {
    const int32_t* positions = step.positions + step.row_start[r];
    const int64_t num_tokens = step.row_start[r + 1] - step.row_start[r];
    if (num_tokens == 0) continue;
    const int64_t segments = positions[num_tokens - 1] / SEGMENT + 1 - first_visible(positions[0], window_) / SEGMENT;
    const int64_t most_items = rows_of_unit(items_of_all, segments, num_threads);
    for (const HeadGroup& group : groups_) {
      const int64_t items = num_tokens * group.num_heads;
      // Whole tokens, so that the rows of a token stay together.
      const int64_t tokens = std::max<int64_t>(1, most_items / group.num_heads);
      const int64_t most = std::min(most_items, tokens * group.num_heads);
      for (int64_t item = 0; item < items; item += most) {
        const int64_t count = std::min(most, items - item);
        const int64_t first = first_visible(positions[item / group.num_heads], window_);
        const int64_t last = positions[(item + count - 1) / group.num_heads];
        const int64_t segment = first / SEGMENT;
        units_.push_back({r, group, item, count, segment, last / SEGMENT + 1, nullptr, segment, nullptr, 1});
        costs_.push_back((last + 1 - first) * count);
      }
    }
  }
}

void AttentionTasks::deal(const KVStep& step, int num_threads) {
  list_units(step, num_threads);
  const int64_t piece =
      std::accumulate(costs_.begin(), costs_.end(), int64_t(0)) / (PIECES_PER_THREAD * num_threads) + 1;
  size_t num_floats = 0, num_split = 0;
  const auto floats_of = [&](const AttentionTask& unit) {
    return size_t((unit.end_segment - unit.first_segment) * part_floats(unit.num_items, padded_C_));
  };
  for (size_t i = 0; i < units_.size(); ++i) {
    AttentionTask& unit = units_[i];
    if (num_threads > 1)
      unit.num_tasks = int32_t(std::min(unit.end_segment - unit.first_segment, (costs_[i] + piece - 1) / piece));
    if (unit.num_tasks > 1) num_floats += floats_of(unit), ++num_split;
  }
  parts_.resize(num_floats), unfinished_.resize(num_split), tasks_.clear();
  float* parts = parts_.data();
  int32_t* unfinished = unfinished_.data();
  // The last tokens of a prompt see the most positions, so they come first.
  for (size_t i = units_.size(); i-- > 0;) {
    AttentionTask task = units_[i];
    const int64_t first = task.first_segment, segments = task.end_segment - first;
    if (task.num_tasks > 1) {
      task.parts = parts, task.unfinished = unfinished;
      parts += floats_of(units_[i]), *unfinished++ = task.num_tasks;
    }
    for (int64_t n = 0; n < task.num_tasks; ++n) {
      task.first_segment = first + segments * n / task.num_tasks;
      task.end_segment = first + segments * (n + 1) / task.num_tasks;
      tasks_.push_back(task);
    }
  }
}

}  // namespace tinycluster
