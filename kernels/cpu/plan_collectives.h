// The collectives of a plan: thread 0 speaks to the other ranks, the others wait for it.
#pragma once

#include <cstring>
#include <functional>

#include "collective_table.h"
#include "plan.h"

namespace tinycluster {

class Collective : public Op {
 public:
  Collective(std::string name, const CollectiveTable* table) : Op(std::move(name)), table_(table) {}

  void prepare(const Step&) override { failed_ = false; }
  void run(Team& team, const Step& step) final {
    if (team.index() == 0) failed_ = !call(*table_, step);
    team.barrier();
    if (!failed_) finish(team, step);
  }
  const char* failure() const override { return failed_ ? table_->error(table_->group) : nullptr; }
  int64_t waited_ns() const override { return table_->waited_ns(table_->group); }

 protected:
  virtual bool call(const CollectiveTable& table, const Step& step) = 0;
  virtual void finish(Team&, const Step&) {}

 private:
  const CollectiveTable* table_;
  bool failed_ = false;
};

class AllReduce : public Collective {
 public:
  AllReduce(std::string name, const CollectiveTable* table, Buffer* x, bool is_fixed)
      : Collective(std::move(name), table), x_(x), is_fixed_(is_fixed) {}

 private:
  bool call(const CollectiveTable& table, const Step& step) override {
    const size_t n = size_t(step.rows(*x_) * x_->width);
    return is_fixed_ ? table.all_reduce_i64(table.group, step.integers(*x_), n)
                     : table.all_reduce_f32(table.group, step.floats(*x_), n);
  }
  Buffer* x_;
  bool is_fixed_;
};

// The output rows that one of several ranks samples; kernels/program.py has the same rule.
class SampledRows {
 public:
  SampledRows(int64_t rows, size_t num_ranks) : rows_(rows), num_ranks_(int64_t(num_ranks)) {}
  int64_t begin(size_t rank) const { return rows_ * int64_t(rank) / num_ranks_; }
  int64_t count(size_t rank) const { return begin(rank + 1) - begin(rank); }

 private:
  int64_t rows_, num_ranks_;
};

// out = the ranks' columns of the logits side by side, of all rows or of those that this rank samples; the others are
// left as they are. `parts` is room for the ranks' matrices end to end.
class GatherLogits : public Collective {
 public:
  GatherLogits(std::string name, const CollectiveTable* table, Buffer* x, std::vector<int64_t> widths, Buffer* parts,
               Buffer* out)
      : Collective(std::move(name), table), x_(x), widths_(std::move(widths)), parts_(parts), out_(out) {}

 private:
  bool call(const CollectiveTable& table, const Step& step) override {
    const SampledRows sampled(step.rows(*x_), table.size);
    const bool wants_all = step.batch.wants_all;
    begin_ = wants_all ? 0 : sampled.begin(table.rank), count_ = wants_all ? step.rows(*x_) : sampled.count(table.rank);
    // One row end to end is one row side by side.
    float* const to = count_ == 1 ? step.floats(*out_) + begin_ * out_->width : step.floats(*parts_);
    bytes_.clear();
    for (int64_t width : widths_) {
      const size_t row_bytes = size_t(width) * sizeof(float);
      if (wants_all) bytes_.push_back(size_t(step.rows(*x_)) * row_bytes);
      for (size_t r = 0; !wants_all && r < table.size; ++r) bytes_.push_back(size_t(sampled.count(r)) * row_bytes);
    }
    const auto exchange = wants_all ? table.all_gather : table.all_to_all;
    return exchange(table.group, step.floats(*x_), bytes_.data(), to);
  }
  void finish(Team& team, const Step& step) override {
    if (count_ == 1) return;
    team.share(count_, 1, [&](int64_t begin, int64_t end) {
      int64_t column = 0;
      for (int64_t width : widths_) {
        const float* part = step.floats(*parts_) + column * count_;
        for (int64_t row = begin; row < end; ++row)
          std::copy_n(part + row * width, width, step.floats(*out_) + (begin_ + row) * out_->width + column);
        column += width;
      }
    });
  }
  Buffer* x_;
  std::vector<int64_t> widths_;
  std::vector<size_t> bytes_;
  Buffer *parts_, *out_;
  int64_t begin_ = 0, count_ = 0;  // the rows of this step
};

// The sums of fixed-point numbers, each rank's of its own rows.
class ReduceScatter : public Collective {
 public:
  ReduceScatter(std::string name, const CollectiveTable* table, Buffer* x)
      : Collective(std::move(name), table), x_(x) {}

 private:
  bool call(const CollectiveTable& table, const Step& step) override {
    const DealtRows dealt(step.rows(*x_), table.size);
    if (!dealt.are_dealt())
      return table.all_reduce_i64(table.group, step.integers(*x_), size_t(step.rows(*x_) * x_->width));
    counts_.clear();
    for (size_t r = 0; r < table.size; ++r) counts_.push_back(size_t(dealt.count(r) * x_->width));
    return table.reduce_scatter_i64(table.group, step.integers(*x_), counts_.data());
  }
  Buffer* x_;
  std::vector<size_t> counts_;
};

// The rows that the ranks dealt among themselves, for all of them.
class GatherDealt : public Collective {
 public:
  GatherDealt(std::string name, const CollectiveTable* table, Buffer* x) : Collective(std::move(name), table), x_(x) {}

 private:
  bool call(const CollectiveTable& table, const Step& step) override {
    const DealtRows dealt(step.rows(*x_), table.size);
    if (!dealt.are_dealt()) return true;
    bytes_.clear();
    for (size_t r = 0; r < table.size; ++r) bytes_.push_back(size_t(dealt.count(r) * x_->row_bytes()));
    uint8_t* const rows = step.bytes(*x_);
    return table.all_gather(table.group, rows + dealt.begin(table.rank) * x_->row_bytes(), bytes_.data(), rows);
  }
  Buffer* x_;
  std::vector<size_t> bytes_;
};

// To or from the same tensor rank of a neighbouring stage.
class Transfer : public Collective {
 public:
  Transfer(std::string name, const CollectiveTable* table, Buffer* x, size_t peer, bool is_send)
      : Collective(std::move(name), table), x_(x), peer_(peer), is_send_(is_send) {}
  bool awaits_stage() const override { return !is_send_; }

 private:
  bool call(const CollectiveTable& table, const Step& step) override {
    const size_t bytes = size_t(step.rows(*x_) * x_->width) * sizeof(float);
    return is_send_ ? table.send(table.group, step.floats(*x_), bytes, peer_)
                    : table.recv(table.group, step.floats(*x_), bytes, peer_);
  }
  Buffer* x_;
  size_t peer_;
  bool is_send_;
};

}  // namespace tinycluster
