// Python faces of what sampling needs: the next token of every row, and top-k.
#include <nanobind/stl/optional.h>

#include <atomic>
#include <optional>

#include "cpu.h"
#include "random_bits.h"
#include "select.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

// The first row that has no token, if there is one.
std::optional<int64_t> sample(Cpu& cpu, Array<const float, 2> logits, Array<const double, 1> temperature,
                              Array<const int64_t, 1> top_k, Array<const double, 1> top_p, Array<const double, 1> min_p,
                              Array<const uint64_t, 1> seed, Array<const uint64_t, 1> position, Array<int64_t, 1> out) {
  const int64_t O = int64_t(logits.shape(0)), V = int64_t(logits.shape(1));
  require(V > 0 && V < INT32_MAX - 2 * TILE, "logits must have between 1 and 2^31 - 34 columns");
  for (const size_t size :
       {temperature.size(), top_k.size(), top_p.size(), min_p.size(), seed.size(), position.size(), out.size()})
    require(int64_t(size) == O, "every array must have one entry per row of logits");
  nb::gil_scoped_release release;
  cpu.sample_memory.resize(cpu.pool.num_threads());
  std::atomic<int64_t> first_bad{O};
  const auto choose = [&](const SampleScratch& scratch, int64_t row) {
    const SampleArgs args = {logits.data() + row * V,
                             V,
                             temperature.data()[row],
                             top_k.data()[row],
                             top_p.data()[row],
                             min_p.data()[row],
                             random_bits(seed.data()[row], position.data()[row])};
    if (cpu.kernels->sample(args, scratch, out.data() + row)) return;
    int64_t bad = first_bad.load();
    while (row < bad && !first_bad.compare_exchange_weak(bad, row)) {
    }
  };
  if (O == 1) {
    // To meet the other threads would take longer.
    choose(cpu.sample_memory[0].for_vocabulary(V), 0);
  } else {
    cpu.pool.run([&](Team& team) {
      const SampleScratch scratch = cpu.sample_memory[team.index()].for_vocabulary(V);
      team.share(O, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) choose(scratch, row);
      });
    });
  }
  return first_bad == O ? std::nullopt : std::optional<int64_t>(first_bad);
}

}  // namespace

void bind_sampling(nb::module_& m, nb::class_<Cpu>& cpu) {
  cpu.def("sample", &sample, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a, "position"_a,
          "out"_a);
  m.def(
      "top_k",
      [](Array<const float, 2> x, Array<int32_t, 2> out) {
        require(out.shape(0) == x.shape(0) && out.shape(1) <= x.shape(1), "x must be (O, V), out (O, k) with k <= V");
        nb::gil_scoped_release release;
        top_k(x.data(), x.shape(0), x.shape(1), out.shape(1), out.data());
      },
      "x"_a, "out"_a);
}

}  // namespace tinycluster
