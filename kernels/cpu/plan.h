// A stage's Program compiled to a flat list of operations over one arena. All threads of a pool walk the list together;
// between operations they meet. Python is not involved in a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "kernels.h"
#include "pool.h"
#include "tally.h"

namespace tinycluster {

// One step's tokens, packed; see kernels/program.py.
struct Batch {
  const int32_t* tokens;  // (T,)
  KVStep kv;              // positions, row_start, block_tables
  const int32_t* output_rows;
  int64_t T, O;
  bool wants_all;  // every rank needs the logits of all output rows, not only of those that it samples
};

// A matrix in the arena with one row per token or per output row. Codes are `width` columns in groups of 32.
struct Buffer {
  int64_t width;
  bool is_outputs;
  int code_bits;
  int64_t offset = 0;

  int64_t row_bytes() const { return code_bits ? width / GROUP * Codes::token_bytes(code_bits) : width * 4; }
};

class Op;

// What happened in thread 0, on CLOCK_MONOTONIC.
struct Span {
  enum Kind { compute, communicate, wait };
  const Op* op;
  Kind kind;
  int64_t start_ns, end_ns;
};

// A step, or a block of its tokens: buffers then begin at the block's first token, except those of fixed-point sums,
// which are used up within the block and lie at the same place for all of them.
struct Step {
  Batch batch;
  uint8_t* arena;
  const Kernels* kernels;
  Tally* tally = nullptr;              // where thread 0 adds up its time among other ranks
  std::vector<Span>* spans = nullptr;  // where thread 0 notes what it does, while tracing
  int64_t first_token = 0;             // a multiple of CODE_BLOCK

  int64_t rows(const Buffer& b) const { return b.is_outputs ? batch.O : batch.T; }
  uint8_t* bytes(const Buffer& b) const { return arena + b.offset + (b.is_outputs ? 0 : first_token * b.row_bytes()); }
  float* floats(const Buffer& b) const { return reinterpret_cast<float*>(bytes(b)); }
  int64_t* integers(const Buffer& b) const { return reinterpret_cast<int64_t*>(arena + b.offset); }
  Codes codes(const Buffer& b) const { return {bytes(b), b.code_bits, b.width / GROUP}; }
  Step block(int64_t first, int64_t count) const {
    Step part = *this;
    part.first_token = first, part.batch.T = count;
    return part;
  }
};

// An operation of the plan. Every thread of the team calls run with the same step.
class Op {
 public:
  explicit Op(std::string name) : name_(std::move(name)) {}
  virtual ~Op() = default;
  virtual void run(Team& team, const Step& step) = 0;
  // Prepares what threads share, before they start on the step.
  virtual void prepare(const Step&) {}
  // Why the last run failed, or null. Asked for after all threads have met.
  virtual const char* failure() const { return nullptr; }
  // This operation, or the one inside it, that failed in the last run; null if none did.
  virtual const Op* failed() const { return failure() ? this : nullptr; }
  // Time spent waiting for other ranks so far; -1 for operations that speak to none.
  virtual int64_t waited_ns() const { return -1; }
  // Whether its waiting is for the activations of the stage before.
  virtual bool awaits_stage() const { return false; }
  // Whether its parts are traced, and not it.
  virtual bool is_traced_inside() const { return false; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// The rows of a step that each of several ranks computes for all of them: whole blocks of codes, as many for each as
// for the others. Of fewer rows every rank computes all, since to exchange them would take longer.
class DealtRows {
 public:
  DealtRows(int64_t rows, size_t num_ranks) : rows_(rows), num_ranks_(int64_t(num_ranks)) {}

  bool are_dealt() const { return num_ranks_ > 1 && rows_ >= num_ranks_ * CODE_BLOCK; }
  int64_t begin(size_t rank) const {
    return are_dealt() ? rows_ / CODE_BLOCK * int64_t(rank) / num_ranks_ * CODE_BLOCK : 0;
  }
  int64_t end(size_t rank) const { return are_dealt() && int64_t(rank) + 1 < num_ranks_ ? begin(rank + 1) : rows_; }
  int64_t count(size_t rank) const { return end(rank) - begin(rank); }

 private:
  int64_t rows_, num_ranks_;
};

// An operation whose row depends on the same row of its inputs alone: several of them run together, a few rows at a
// time, while the rows are in the first cache level.
class RowOp {
 public:
  virtual ~RowOp() = default;
  // begin is a multiple of CODE_BLOCK, and so is end unless it is the number of rows.
  virtual void run(const Step& step, int64_t begin, int64_t end) = 0;
};

// Where ranks deal the rows among themselves, this is rank `rank` of `num_ranks`.
class RowGroup : public Op {
 public:
  RowGroup(std::string name, bool is_outputs, size_t rank, size_t num_ranks)
      : Op(std::move(name)), is_outputs_(is_outputs), rank_(rank), num_ranks_(num_ranks) {}
  void add(std::unique_ptr<RowOp> op) { ops_.push_back(std::move(op)); }
  void run(Team& team, const Step& step) override;

 private:
  bool is_outputs_;
  size_t rank_, num_ranks_;
  std::vector<std::unique_ptr<RowOp>> ops_;
};

// Runs an operation in one thread of the team. Thread 0 adds up its time among other ranks and, if the step is traced,
// notes what it did when.
void run_timed(Op& op, Team& team, const Step& step);

// Operations that run block after block of tokens instead of one after the other over all tokens, so that what they
// hand each other stays in the cache.
class TokenBlocks : public Op {
 public:
  TokenBlocks(std::string name, int64_t block_tokens) : Op(std::move(name)), block_tokens_(block_tokens) {}
  void add(std::unique_ptr<Op> op) { ops_.push_back(std::move(op)); }
  void prepare(const Step& step) override;
  void run(Team& team, const Step& step) override;
  bool is_traced_inside() const override { return true; }
  const Op* failed() const override;

 private:
  int64_t block_tokens_;
  std::vector<std::unique_ptr<Op>> ops_;
};

class Plan {
 public:
  void add(std::unique_ptr<Op> op) { ops_.push_back(std::move(op)); }

  // Null, or the operation that failed; its failure() says why.
  const Op* run(Pool& pool, const Step& step);

  Tally::Times times() const { return tally_.times(); }
  void set_tracing(bool on) { is_tracing_ = on; }
  std::vector<Span> take_timeline() { return std::exchange(spans_, {}); }

 private:
  std::vector<std::unique_ptr<Op>> ops_;
  Tally tally_;
  std::vector<Span> spans_;
  bool is_tracing_ = false;
};

}  // namespace tinycluster
