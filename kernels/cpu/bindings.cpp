// The module `_cpu`. Every function checks the shapes of its arguments; the kernels trust them.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu.h"

using namespace nanobind::literals;

NB_MODULE(_cpu, m) {
  using namespace tinycluster;
  m.doc() = "Native kernels for CPUs; `tinycluster.kernels.ops` is their public face.";

  m.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported_kernels()) names.push_back(kernels->name);
    return names;
  });

  nb::class_<Cpu> cpu(m, "Cpu");
  cpu.def(nb::init<int, const std::string&, int, const std::vector<int>&>(), "num_threads"_a, "isa"_a = "auto",
          "activation_bits"_a = 16, "cores"_a = std::vector<int>())
      .def_prop_ro("isa", [](const Cpu& self) { return self.kernels->name; })
      .def_prop_ro("activation_bits", [](const Cpu& self) { return self.activation_bits; })
      .def_prop_ro("num_threads", [](const Cpu& self) { return self.pool.num_threads(); });
  bind_linear(m, cpu);
  bind_rows(cpu);
  bind_attention(m, cpu);
  bind_probe(cpu);
  bind_sampling(m, cpu);
  bind_plan(m);
}
