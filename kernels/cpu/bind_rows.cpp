// Python faces of the operations on rows: norm, activation, residual, rope, softmax.
#include <nanobind/stl/optional.h>

#include <optional>

#include "cpu.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

template <class Body>
void for_rows(Cpu& cpu, int64_t rows, const Body& body) {
  cpu.share(rows, rows_per_piece(rows, cpu.pool.num_threads()), body);
}

void rms_norm(Cpu& cpu, Array<const float, 2> x, Array<const float, 1> weight, float eps, Array<float, 2> out) {
  const int64_t dim = weight.shape(0);
  require(x.shape(0) == out.shape(0) && x.shape(1) == out.shape(1), "out must have the shape of x");
  require(dim > 0 && x.shape(1) % dim == 0, "the columns of x must be a multiple of weight's length");
  for_rows(cpu, x.shape(0) * (x.shape(1) / dim), [&](int64_t begin, int64_t end) {
    cpu.kernels->rms_norm(x.data(), weight.data(), eps, dim, out.data(), begin, end);
  });
}

void swiglu(Cpu& cpu, Array<const float, 2> gate, Array<const float, 2> up, Array<float, 2> out) {
  require(gate.size() == up.size() && gate.size() == out.size(), "gate, up and out must have one shape");
  cpu.share(gate.size(), 4096,
            [&](int64_t begin, int64_t end) { cpu.kernels->swiglu(gate.data(), up.data(), out.data(), begin, end); });
}

void add_fixed(Cpu& cpu, Array<float, 2> x, Array<const int64_t, 2> fixed, std::optional<Array<const float, 1>> bias) {
  require(x.shape(0) == fixed.shape(0) && x.shape(1) == fixed.shape(1), "fixed must have the shape of x");
  require(!bias || bias->shape(0) == x.shape(1), "bias must be as long as a row of x");
  for_rows(cpu, x.shape(0), [&](int64_t begin, int64_t end) {
    cpu.kernels->add_fixed(x.data(), fixed.data(), bias ? bias->data() : nullptr, x.shape(1), begin, end);
  });
}

void rope(Cpu& cpu, Array<float, 2> x, Array<const float, 2> cos, Array<const float, 2> sin,
          Array<const int32_t, 1> positions, int64_t head_dim) {
  require(head_dim > 0 && x.shape(1) % head_dim == 0, "the columns of x must be a multiple of head_dim");
  require(int64_t(cos.shape(1)) * 2 == head_dim && cos.size() == sin.size(), "cos and sin must be (P, head_dim / 2)");
  require(positions.shape(0) == x.shape(0), "positions must be (T,)");
  for (size_t t = 0; t < positions.shape(0); ++t)
    require(positions.data()[t] >= 0 && size_t(positions.data()[t]) < cos.shape(0), "a position is outside the table");
  for_rows(cpu, x.shape(0), [&](int64_t begin, int64_t end) {
    cpu.kernels->rope(x.data(), cos.data(), sin.data(), positions.data(), x.shape(1) / head_dim, head_dim, begin, end);
  });
}

void softmax(Cpu& cpu, Array<const float, 2> x, Array<float, 2> out) {
  require(x.size() == out.size(), "out must have the shape of x");
  const int64_t size = x.shape(1);
  for_rows(cpu, x.shape(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      cpu.kernels->softmax(x.data() + row * size, out.data() + row * size, size);
  });
}

}  // namespace

void bind_rows(nb::class_<Cpu>& cpu) {
  cpu.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "out"_a)
      .def("swiglu", &swiglu, "gate"_a, "up"_a, "out"_a)
      .def("add_fixed", &add_fixed, "x"_a, "fixed"_a, "bias"_a.none())
      .def("rope", &rope, "x"_a, "cos"_a, "sin"_a, "positions"_a, "head_dim"_a)
      .def("softmax", &softmax, "x"_a, "out"_a);
}

}  // namespace tinycluster
