// Python faces of what sampling needs: argmax, top-k.
#include "cpu.h"
#include "select.h"

using namespace nanobind::literals;

namespace tinycluster {

void bind_sampling(nb::module_& m, nb::class_<Cpu>&) {
  m.def(
      "argmax",
      [](Array<const float, 2> x, Array<int32_t, 1> out) {
        require(x.shape(1) > 0 && out.shape(0) == x.shape(0), "x must be (O, V) with V > 0, out (O,)");
        nb::gil_scoped_release release;
        argmax(x.data(), x.shape(0), x.shape(1), out.data());
      },
      "x"_a, "out"_a);
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
