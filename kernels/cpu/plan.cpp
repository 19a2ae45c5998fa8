#include "plan.h"

#include <algorithm>

namespace tinycluster {

namespace {

// A few rows of a few buffers fit the first cache level.
constexpr int64_t ROWS_AT_ONCE = 16;
static_assert(ROWS_AT_ONCE % CODE_BLOCK == 0);

}  // namespace

void RowGroup::run(Team& team, const Step& step) {
  const DealtRows dealt(is_outputs_ ? step.batch.O : step.batch.T, num_ranks_);
  const int64_t first = dealt.begin(rank_);
  team.share(dealt.count(rank_), ROWS_AT_ONCE, [&](int64_t begin, int64_t end) {
    for (int64_t row = first + begin; row < first + end; row += ROWS_AT_ONCE)
      for (const auto& op : ops_) op->run(step, row, std::min(row + ROWS_AT_ONCE, first + end));
  });
}

void run_timed(Op& op, Team& team, const Step& step) {
  if (team.index() != 0 || op.is_traced_inside()) return op.run(team, step);
  // Only what speaks to other ranks is timed always: a step's other time is computing.
  const int64_t waited = op.waited_ns();
  if (waited < 0 && !step.spans) return op.run(team, step);
  const int64_t start = now_ns();
  if (waited >= 0) step.tally->begin(start, op.awaits_stage());
  op.run(team, step);
  const int64_t end = now_ns();
  if (waited < 0) {
    step.spans->push_back({&op, Span::compute, start, end});
    return;
  }
  const int64_t middle = std::min(end, start + op.waited_ns() - waited);
  step.tally->end(middle - start, end - middle);
  if (!step.spans) return;
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
      run_timed(*op, team, block);
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
  Step timed = step;
  timed.tally = &tally_, timed.spans = is_tracing_ ? &spans_ : nullptr;
  pool.run([&](Team& team) {
    for (const auto& op : ops_) {
      run_timed(*op, team, timed);
      if (op->failed()) return;
    }
  });
  for (const auto& op : ops_)
    if (const Op* failed = op->failed()) return failed;
  return nullptr;
}

}  // namespace tinycluster
