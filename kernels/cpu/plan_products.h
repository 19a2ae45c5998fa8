// The products of a plan: what threads share is tiles of output rows.
#pragma once

#include <algorithm>
#include <atomic>

#include "plan.h"

namespace tinycluster {

// Several products of one input, taken as one row of tiles.
class Products : public Op {
 public:
  struct Part {
    Buffer* x;
    const Weight* weight;
    const float* bias;
    Buffer* out;       // float32, int64 for a fixed-point sum
    float limit;       // 0 for a plain product
    bool is_residual;  // out is added to
  };
  Products(std::string name, std::vector<Part> parts) : Op(std::move(name)), parts_(std::move(parts)) {
    for (const Part& part : parts_) tiles_ += part.weight->tiles;
  }

  void prepare(const Step&) override { fits_.store(true, std::memory_order_relaxed); }

  void run(Team& team, const Step& step) override {
    // One token streams weights from memory, where long pieces and several tiles at once pay; many tokens compute.
    const int64_t piece = step.rows(*parts_[0].x) < CODE_BLOCK ? 4 : 2;
    team.share(tiles_, piece, [&](int64_t begin, int64_t end) {
      for (const Part& part : parts_) {
        const int64_t tiles = part.weight->tiles, from = std::max<int64_t>(begin, 0), to = std::min(end, tiles);
        if (from < to && !step.kernels->linear(arguments(part, step), from, to))
          fits_.store(false, std::memory_order_relaxed);
        begin -= tiles, end -= tiles;
      }
    });
  }

  const char* failure() const override {
    return fits_.load(std::memory_order_relaxed) ? nullptr : "a partial sum is not smaller than its fixed-point limit";
  }

 private:
  static LinearArgs arguments(const Part& part, const Step& step) {
    LinearArgs args = {};
    args.weight = part.weight;
    if (part.weight->is_grouped()) {
      args.codes = step.codes(*part.x);
    } else {
      args.x = step.floats(*part.x);
    }
    args.T = step.rows(*part.x);
    args.bias = part.bias;
    args.limit = part.limit;
    if (part.is_residual) {
      args.residual = step.floats(*part.out);
    } else if (part.limit > 0) {
      args.fixed = step.integers(*part.out);
    } else {
      args.out = step.floats(*part.out);
    }
    return args;
  }

  std::vector<Part> parts_;
  int64_t tiles_ = 0;
  std::atomic<bool> fits_{true};
};

class GateUp : public Op {
 public:
  struct Part {
    const Weight* weight;
    const float* bias;
  };
  GateUp(std::string name, Buffer* x, Part gate, Part up, Buffer* out, bool makes_codes)
      : Op(std::move(name)), x_(x), gate_(gate), up_(up), out_(out), makes_codes_(makes_codes) {}

  void run(Team& team, const Step& step) override {
    GateUpArgs args = {arguments(gate_, step), arguments(up_, step), nullptr, {}};
    if (makes_codes_) {
      args.out_codes = step.codes(*out_);
    } else {
      args.out = step.floats(*out_);
    }
    team.share(gate_.weight->N / GROUP, step.rows(*x_) < CODE_BLOCK ? 2 : 1,
               [&](int64_t begin, int64_t end) { step.kernels->gate_up(args, begin, end); });
  }

 private:
  LinearArgs arguments(const Part& part, const Step& step) const {
    LinearArgs args = {};
    args.weight = part.weight;
    if (part.weight->is_grouped()) {
      args.codes = step.codes(*x_);
    } else {
      args.x = step.floats(*x_);
    }
    args.T = step.rows(*x_);
    args.bias = part.bias;
    return args;
  }

  Buffer* x_;
  Part gate_, up_;
  Buffer* out_;
  bool makes_codes_;
};

class Attention : public Op {
 public:
  Attention(std::string name, Buffer* q, const KVCache* cache, AttentionTasks* tasks, int64_t num_heads, float scale,
            int64_t window, Buffer* out)
      : Op(std::move(name)),
        q_(q),
        cache_(cache),
        tasks_(tasks),
        H_(num_heads),
        scale_(scale),
        window_(window),
        out_(out) {}

  void run(Team& team, const Step& step) override {
    const AttentionArgs args = {cache_, &step.batch.kv, step.floats(*q_), H_, window_, scale_, step.floats(*out_)};
    team.share(tasks_->size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) step.kernels->attention(args, (*tasks_)[i]);
    });
  }

 private:
  Buffer* q_;
  const KVCache* cache_;
  AttentionTasks* tasks_;
  int64_t H_;
  float scale_;
  int64_t window_;
  Buffer* out_;
};

}  // namespace tinycluster
