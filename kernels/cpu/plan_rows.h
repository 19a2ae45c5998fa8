// The row operations of a plan; kernels/program.py says what each computes.
#pragma once

#include <algorithm>
#include <cstring>

#include "plan.h"

namespace tinycluster {

struct EmbeddingRows : RowOp {
  const Weight* weight;
  int64_t first_row;
  Buffer* out;
  void run(const Step& s, int64_t begin, int64_t end) override {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = s.batch.tokens[t] - first_row;
      float* to = s.floats(*out) + t * out->width;
      if (row >= 0 && row < weight->N) {
        s.kernels->dequantize_row(*weight, row, to);
      } else {
        std::fill_n(to, out->width, 0.0f);
      }
    }
  }
};

struct NormRows : RowOp {
  Buffer *x, *out;
  const float* weight;
  float eps;
  int64_t dim;
  void run(const Step& s, int64_t begin, int64_t end) override {
    const int64_t per_row = x->width / dim;
    s.kernels->rms_norm(s.floats(*x), weight, eps, dim, s.floats(*out), begin * per_row, end * per_row);
  }
};

struct AddFixedRows : RowOp {
  Buffer *x, *fixed;
  const float* bias;
  void run(const Step& s, int64_t begin, int64_t end) override {
    s.kernels->add_fixed(s.floats(*x), s.integers(*fixed), bias, x->width, begin, end);
  }
};

struct RopeRows : RowOp {
  Buffer* x;
  const float *cos, *sin;
  int64_t head_dim;
  void run(const Step& s, int64_t begin, int64_t end) override {
    s.kernels->rope(s.floats(*x), cos, sin, s.batch.kv.positions, x->width / head_dim, head_dim, begin, end);
  }
};

struct WriteKVRows : RowOp {
  Buffer *k, *v;
  const KVCache* cache;
  void run(const Step& s, int64_t begin, int64_t end) override {
    s.kernels->write_kv({cache, &s.batch.kv, s.floats(*k), s.floats(*v)}, begin, end);
  }
};

struct SwiGluRows : RowOp {
  Buffer *gate, *up, *out;
  void run(const Step& s, int64_t begin, int64_t end) override {
    s.kernels->swiglu(s.floats(*gate), s.floats(*up), s.floats(*out), begin * out->width, end * out->width);
  }
};

struct QuantizeRows : RowOp {
  Buffer *x, *out;
  const Weight* weight;  // whose groups the codes have
  void run(const Step& s, int64_t begin, int64_t end) override {
    s.kernels->quantize(*weight, s.floats(*x), s.codes(*out), begin, end);
  }
};

struct GatherRows : RowOp {
  Buffer *x, *out;
  void run(const Step& s, int64_t begin, int64_t end) override {
    for (int64_t o = begin; o < end; ++o)
      std::copy_n(s.floats(*x) + s.batch.output_rows[o] * x->width, x->width, s.floats(*out) + o * out->width);
  }
};

}  // namespace tinycluster
