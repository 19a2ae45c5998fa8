#include "plan.h"

#include <algorithm>
#include <chrono>

namespace tinycluster {

namespace {

// A few rows of a few buffers fit the first cache level.
constexpr int64_t ROWS_AT_ONCE = 16;
static_assert(ROWS_AT_ONCE % CODE_BLOCK == 0);

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void RowGroup::run(Team& team, const Step& step) {
  const DealtRows dealt(is_outputs_ ? step.batch.O : step.batch.T, num_ranks_);
  const int64_t first = dealt.begin(rank_);
  team.share(dealt.count(rank_), ROWS_AT_ONCE, [&](int64_t begin, int64_t end) {
    for (int64_t row = first + begin; row < first + end; row += ROWS_AT_ONCE)
      for (const auto& op : ops_) op->run(step, row, std::min(row + ROWS_AT_ONCE, first + end));
  });
}

const Op* Plan::run(Pool& pool, const Step& step) {
  for (const auto& op : ops_) op->prepare(step);
  pool.run([&](Team& team) {
    for (size_t index = 0; index < ops_.size(); ++index) {
      Op& op = *ops_[index];
      if (is_tracing_ && team.index() == 0) {
        trace(step, team, op, int32_t(index));
      } else {
        op.run(team, step);
      }
      if (op.failure()) return;  // known to all threads alike: they met at the end of the operation
    }
  });
  for (const auto& op : ops_)
    if (op->failure()) return op.get();
  return nullptr;
}

void Plan::trace(const Step& step, Team& team, Op& op, int32_t index) {
  const int64_t waited = op.waited_ns(), start = now_ns();
  op.run(team, step);
  const int64_t end = now_ns();
  if (waited < 0) {
    timeline_.push_back({index, Span::compute, start, end});
    return;
  }
  const int64_t middle = std::min(end, start + op.waited_ns() - waited);
  timeline_.push_back({index, Span::wait, start, middle});
  timeline_.push_back({index, Span::communicate, middle, end});
}

}  // namespace tinycluster
