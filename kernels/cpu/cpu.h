// One rank's threads and the kernels they run.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "arrays.h"
#include "sample_memory.h"

namespace tinycluster {

struct Cpu {
  Cpu(int num_threads, const std::string& isa, int activation_bits, const std::vector<int>& cores)
      : pool(num_threads, cores), activation_bits(activation_bits) {
    require(cores.empty() || int(cores.size()) == num_threads, "cores must be one per thread");
    require(num_threads >= 1, "num_threads must be at least 1");
    require(activation_bits == 8 || activation_bits == 16, "activation_bits must be 8 or 16");
    for (const Kernels* supported : supported_kernels())
      if (isa == "auto" || isa == supported->name) kernels = supported;
    require(kernels != nullptr, "this machine does not have the instruction set asked for");
  }

  // body(begin, end) over pieces of [0, count) on all threads, without the GIL.
  template <class Body>
  void share(int64_t count, int64_t piece, const Body& body) {
    nb::gil_scoped_release release;
    pool.run([&](Team& team) { team.share(count, piece, body); });
  }

  Pool pool;
  int activation_bits;
  const Kernels* kernels = nullptr;
  std::vector<SampleMemory> sample_memory;  // one per thread
};

// Pieces of rows, a few per thread, so that they even out.
inline int64_t rows_per_piece(int64_t rows, int num_threads) {
  return std::max<int64_t>(8, (rows + 2 * num_threads - 1) / (2 * num_threads));
}

// Each file binds one family of operations.
void bind_linear(nb::module_& m, nb::class_<Cpu>& cpu);
void bind_rows(nb::class_<Cpu>& cpu);
void bind_attention(nb::module_& m, nb::class_<Cpu>& cpu);
void bind_probe(nb::class_<Cpu>& cpu);
void bind_sampling(nb::module_& m, nb::class_<Cpu>& cpu);
void bind_plan(nb::module_& m);

}  // namespace tinycluster
