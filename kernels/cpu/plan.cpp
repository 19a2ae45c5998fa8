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

void run_traced(Op& op, Team& team, const Step& step) {
  if (!step.spans || team.index() != 0 || op.is_traced_inside()) return op.run(team, step);
  const int64_t waited = op.waited_ns(), start = now_ns();
  op.run(team, step);
  const int64_t end = now_ns();
  if (waited < 0) {
    step.spans->push_back({&op, Span::compute, start, end});
    return;
  }
  const int64_t middle = std::min(end, start + op.waited_ns() - waited);
  step.spans->push_back({&op, Span::wait, start, middle});
  step.spans->push_back({&op, Span::communicate, middle, end});
}

void TokenBlocks::prepare(const Step& step) {
  for (const auto& op : ops_) op->prepare(step);
}

void TokenBlocks::run(Team& team, const Step& step) {
  for (int64_t first = 0; first < step.batch.T; first += block_tokens_) {
    const Step block = step.block(first, std::min(block_tokens_, step.batch.T - first));
    for (const auto& op : ops_) {
      run_traced(*op, team, block);
      if (op->failed()) return;  // known to all threads alike: they met at the end of the operation
    }
  }
}

const Op* TokenBlocks::failed() const {
  for (const auto& op : ops_)
    if (const Op* failed = op->failed()) return failed;
  return nullptr;
}

const Op* Plan::run(Pool& pool, const Step& step) {
  for (const auto& op : ops_) op->prepare(step);
  Step traced = step;
  traced.spans = is_tracing_ ? &spans_ : nullptr;
  pool.run([&](Team& team) {
    for (const auto& op : ops_) {
      run_traced(*op, team, traced);
      if (op->failed()) return;
    }
  });
  for (const auto& op : ops_)
    if (const Op* failed = op->failed()) return failed;
  return nullptr;
}

}  // namespace tinycluster
