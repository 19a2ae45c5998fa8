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

int64_t values_bytes(const Weight& w) {
  const int64_t element = w.format == Format::f32 ? 4 : 2;
  if (!w.is_grouped()) return w.tiles() * w.K * TILE * element;
  return w.tiles() * w.groups() * TILE * (w.format == Format::q8 ? GROUP : GROUP / 2);
}

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Format format_of(const std::string& name) {
  const char* names[] = {"f32", "f16", "bf16", "q8", "q4"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return Format(i);
  throw nb::value_error("format must be f32, f16, bf16, q8 or q4");
}

bool run_linear(Cpu& cpu, LinearArgs& args, int64_t columns) {
  const Weight& w = *args.weight;
  require(columns == w.K, "x must be (T, K)");
  nb::gil_scoped_release release;
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  if (w.is_grouped()) {
    const int64_t groups = args.T * w.groups();
    const int planes = cpu.activation_bits / 8;
    codes.resize(planes * groups * GROUP), scales.resize(groups), sums.resize(groups);
    int8_t* high = planes == 2 ? codes.data() + groups * GROUP : nullptr;
    args.xq = {high, codes.data(), scales.data(), sums.data()};
  }
  std::atomic<bool> fits{true};
  // Small pieces even out the threads, long ones stream from memory; four tiles keep several chains in flight.
  const int64_t piece = std::max<int64_t>(4, w.tiles() / (4 * cpu.pool.num_threads()) / 4 * 4);
  cpu.pool.run([&](Team& team) {
    if (w.is_grouped())
      team.share(args.T, 16,
                 [&](int64_t begin, int64_t end) { cpu.kernels->quantize(w, args.x, args.xq, begin, end); });
    team.share(w.tiles(), piece, [&](int64_t begin, int64_t end) {
      if (!cpu.kernels->linear(args, begin, end)) fits.store(false, std::memory_order_relaxed);
    });
  });
  return fits.load();
}

void linear(Cpu& cpu, Array<const float, 2> x, const WeightHandle& handle, std::optional<Array<const float, 1>> bias,
            Array<float, 2> out) {
  const Weight& w = handle.weight;
  require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
  require(!bias || int64_t(bias->shape(0)) == w.N, "bias must be (N,)");
  LinearArgs args = {&w, x.data(), {}, int64_t(x.shape(0)), bias ? bias->data() : nullptr, out.data(), nullptr, 0};
  run_linear(cpu, args, x.shape(1));
}

bool linear_fixed(Cpu& cpu, Array<const float, 2> x, const WeightHandle& handle, float limit, Array<int64_t, 2> out) {
  const Weight& w = handle.weight;
  require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
  LinearArgs args = {&w, x.data(), {}, int64_t(x.shape(0)), nullptr, nullptr, out.data(), limit};
  return run_linear(cpu, args, x.shape(1));
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
          [](WeightHandle* self, const std::string& format, int64_t rows, int64_t columns, int64_t unit, Bytes values,
             std::optional<Halves> scales, std::optional<Halves> minimums) {
            Weight w = {format_of(format), rows, columns, unit, values.data(), nullptr, nullptr};
            require(rows >= 0 && columns >= 0 && unit >= 1, "rows, columns and unit must not be negative");
            require(int64_t(values.size()) == values_bytes(w), "values do not have the size of the layout");
            const size_t num_scales = w.tiles() * w.groups() * TILE;
            if (w.is_grouped()) require(scales && scales->size() == num_scales, "scales must be (tiles, G, 16)");
            if (w.format == Format::q4) require(minimums && minimums->size() == num_scales, "minimums likewise");
            if (scales) w.scales = scales->data();
            if (minimums) w.minimums = minimums->data();
            new (self) WeightHandle{w, nb::cast(values), scales ? nb::cast(*scales) : nb::none(),
                                    minimums ? nb::cast(*minimums) : nb::none()};
          },
          "format"_a, "rows"_a, "columns"_a, "unit"_a, "values"_a, "scales"_a = nb::none(), "minimums"_a = nb::none());
  cpu.def("linear", &linear, "x"_a, "weight"_a, "bias"_a.none(), "out"_a)
      .def("linear_fixed", &linear_fixed, "x"_a, "weight"_a, "limit"_a, "out"_a)
      .def("embedding", &embedding, "tokens"_a, "weight"_a, "first_row"_a, "out"_a);
}

}  // namespace tinycluster
