// Python faces of packed weights and of what multiplies with them or reads them.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <optional>
#include <vector>

#include "cpu.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Format format_of(const std::string& name) {
  const char* names[] = {"f32", "f16", "bf16", "q8", "q4"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return Format(i);
  throw nb::value_error("format must be f32, f16, bf16, q8 or q4");
}

// Room for the codes of T tokens in the groups of one weight.
struct CodesBuffer {
  CodesBuffer(const Weight& w, int64_t T, int bits)
      : bytes(w.is_grouped() ? T * w.groups * Codes::token_bytes(bits) : 0) {
    codes = {w.is_grouped() ? bytes.data() : nullptr, bits, w.groups};
  }
  std::vector<uint8_t> bytes;
  Codes codes;
};

// Four tiles keep several chains in flight; small pieces even out the threads, long ones stream from memory.
int64_t tiles_per_piece(int64_t tiles, int num_threads) {
  return std::max<int64_t>(4, tiles / (4 * num_threads) / 4 * 4);
}

bool run_linear(Cpu& cpu, LinearArgs args, int64_t columns) {
  const Weight& w = *args.weight;
  require(columns == w.K, "x must be (T, K)");
  nb::gil_scoped_release release;
  CodesBuffer buffer(w, args.T, cpu.activation_bits);
  args.codes = buffer.codes;
  std::atomic<bool> fits{true};
  cpu.pool.run([&](Team& team) {
    if (w.is_grouped())
      team.share(args.T, 16,
                 [&](int64_t begin, int64_t end) { cpu.kernels->quantize(w, args.x, args.codes, begin, end); });
    team.share(w.tiles, tiles_per_piece(w.tiles, team.size()), [&](int64_t begin, int64_t end) {
      if (!cpu.kernels->linear(args, begin, end)) fits.store(false, std::memory_order_relaxed);
    });
  });
  return fits.load();
}

const float* data_or_null(const std::optional<Array<const float, 1>>& bias) { return bias ? bias->data() : nullptr; }

void linear(Cpu& cpu, Array<const float, 2> x, const WeightHandle& handle, std::optional<Array<const float, 1>> bias,
            Array<float, 2> out) {
  const Weight& w = handle.weight;
  require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
  require(!bias || int64_t(bias->shape(0)) == w.N, "bias must be (N,)");
  run_linear(cpu, {&w, x.data(), {}, int64_t(x.shape(0)), data_or_null(bias), out.data(), nullptr, nullptr, 0},
             x.shape(1));
}

bool linear_fixed(Cpu& cpu, Array<const float, 2> x, const WeightHandle& handle, float limit, Array<int64_t, 2> out) {
  const Weight& w = handle.weight;
  require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
  return run_linear(cpu, {&w, x.data(), {}, int64_t(x.shape(0)), nullptr, nullptr, out.data(), nullptr, limit},
                    x.shape(1));
}

bool linear_residual(Cpu& cpu, Array<const float, 2> x, const WeightHandle& handle, float limit,
                     std::optional<Array<const float, 1>> bias, Array<float, 2> residual) {
  const Weight& w = handle.weight;
  require(residual.shape(0) == x.shape(0) && int64_t(residual.shape(1)) == w.N, "residual must be (T, N)");
  require(!bias || int64_t(bias->shape(0)) == w.N, "bias must be (N,)");
  return run_linear(
      cpu, {&w, x.data(), {}, int64_t(x.shape(0)), data_or_null(bias), nullptr, nullptr, residual.data(), limit},
      x.shape(1));
}

void gate_up(Cpu& cpu, Array<const float, 2> x, const WeightHandle& gate, const WeightHandle& up, Array<float, 2> out) {
  const Weight &g = gate.weight, &u = up.weight;
  require(g.N == u.N && g.K == u.K && g.format == u.format && g.N % GROUP == 0, "gate and up must be alike, N in 32s");
  require(int64_t(x.shape(1)) == g.K && x.shape(0) == out.shape(0) && int64_t(out.shape(1)) == g.N,
          "x must be (T, K) and out (T, N)");
  nb::gil_scoped_release release;
  const int64_t T = x.shape(0);
  CodesBuffer buffer(g, T, cpu.activation_bits);
  const LinearArgs args = {&g, x.data(), buffer.codes, T, nullptr, nullptr, nullptr, nullptr, 0};
  GateUpArgs both = {args, args, out.data(), {}};
  both.up.weight = &u;
  cpu.pool.run([&](Team& team) {
    if (g.is_grouped())
      team.share(T, 16,
                 [&](int64_t begin, int64_t end) { cpu.kernels->quantize(g, x.data(), buffer.codes, begin, end); });
    team.share(g.N / GROUP, 4, [&](int64_t begin, int64_t end) { cpu.kernels->gate_up(both, begin, end); });
  });
}

void embedding(Cpu& cpu, Array<const int32_t, 1> tokens, const WeightHandle& handle, int64_t first_row,
               Array<float, 2> out) {
  const Weight& w = handle.weight;
  const int64_t K = out.shape(1);
  require(out.shape(0) == tokens.shape(0) && K == w.K, "out must be (T, K)");
  const int32_t* token = tokens.data();
  float* rows = out.data();
  cpu.share(tokens.shape(0), rows_per_piece(tokens.shape(0), cpu.pool.num_threads()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = token[t] - first_row;
      if (row >= 0 && row < w.N) {
        cpu.kernels->dequantize_row(w, row, rows + t * K);
      } else {
        std::fill(rows + t * K, rows + (t + 1) * K, 0.0f);
      }
    }
  });
}

}  // namespace

void bind_linear(nb::module_& m, nb::class_<Cpu>& cpu) {
  nb::class_<WeightHandle>(m, "Weight")
      .def(
          "__init__",
          [](WeightHandle* self, const std::string& format, int64_t rows, int64_t columns, int64_t unit, Bytes values) {
            require(rows >= 0 && columns >= 0 && unit >= 1, "rows, columns and unit must not be negative");
            const Weight w(format_of(format), rows, columns, unit, values.data());
            require(int64_t(values.size()) == w.tiles * w.tile_bytes, "values do not have the size of the layout");
            new (self) WeightHandle{w, nb::cast(values)};
          },
          "format"_a, "rows"_a, "columns"_a, "unit"_a, "values"_a);
  cpu.def("linear", &linear, "x"_a, "weight"_a, "bias"_a.none(), "out"_a)
      .def("linear_fixed", &linear_fixed, "x"_a, "weight"_a, "limit"_a, "out"_a)
      .def("linear_residual", &linear_residual, "x"_a, "weight"_a, "limit"_a, "bias"_a.none(), "residual"_a)
      .def("gate_up", &gate_up, "x"_a, "gate"_a, "up"_a, "out"_a)
      .def("embedding", &embedding, "tokens"_a, "weight"_a, "first_row"_a, "out"_a);
}

}  // namespace tinycluster
