// Python faces of the probes that measure what the machine can do at most.
#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

// A piece is one huge page.
constexpr int64_t PIECE = (2 << 20) / sizeof(float);

ProbeOperands ones() {
  ProbeOperands p;
  std::fill_n(&p.bytes[0][0][0], sizeof p.bytes, uint8_t(1));
  std::fill_n(&p.values[0][0][0], sizeof p.values / sizeof(float), 1.0f);
  std::fill_n(p.quads, ProbeOperands::COLUMNS, 0x01010101);
  std::fill_n(p.factors, ProbeOperands::COLUMNS, 1.0f);
  return p;
}

double on_all_threads(Cpu& cpu, double (*dots)(const ProbeOperands&)) {
  nb::gil_scoped_release release;
  const ProbeOperands operands = ones();
  std::vector<double> products(cpu.pool.num_threads());
  cpu.pool.run([&](Team& team) { products[team.index()] = dots(operands); });
  return std::accumulate(products.begin(), products.end(), 0.0);
}

double read_values(Cpu& cpu, Array<const float, 1> x) {
  nb::gil_scoped_release release;
  std::vector<double> sums((x.size() + PIECE - 1) / PIECE);
  cpu.pool.run([&](Team& team) {
    team.share(sums.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece)
        sums[piece] =
            cpu.kernels->read_values(x.data() + piece * PIECE, std::min<int64_t>(PIECE, x.size() - piece * PIECE));
    });
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

void bind_probe(nb::class_<Cpu>& cpu) {
  cpu.def("integer_dots", [](Cpu& self) { return on_all_threads(self, self.kernels->integer_dots); })
      .def("float_dots", [](Cpu& self) { return on_all_threads(self, self.kernels->float_dots); })
      .def("read_values", &read_values, "x"_a);
}

}  // namespace tinycluster
