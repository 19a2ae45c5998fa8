// Python faces of what sampling needs: the next token of every row, log-probabilities, and top-k.
#include <nanobind/stl/optional.h>

#include <atomic>
#include <optional>

#include "cpu.h"
#include "random_bits.h"
#include "select.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

// body(thread, row) for every row; the first row for which it is false, if there is one.
template <class Body>
std::optional<int64_t> first_bad_row(Cpu& cpu, int64_t rows, const Body& body) {
  std::atomic<int64_t> first_bad{rows};
  const auto run = [&](int thread, int64_t row) {
    if (body(thread, row)) return;
    int64_t bad = first_bad.load();
    while (row < bad && !first_bad.compare_exchange_weak(bad, row)) {
    }
  };
  if (rows == 1) {
    // To meet the other threads would take longer.
    run(0, 0);
  } else {
    cpu.pool.run([&](Team& team) {
      team.share(rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) run(team.index(), row);
      });
    });
  }
  return first_bad == rows ? std::nullopt : std::optional<int64_t>(first_bad);
}

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
  return first_bad_row(cpu, O, [&](int thread, int64_t row) {
    const SampleArgs args = {logits.data() + row * V,
                             V,
                             temperature.data()[row],
                             top_k.data()[row],
                             top_p.data()[row],
                             min_p.data()[row],
                             random_bits(seed.data()[row], position.data()[row])};
    return cpu.kernels->sample(args, cpu.sample_memory[size_t(thread)].for_vocabulary(V), out.data() + row);
  });
}

// For N of the rows of logits (O, V) and a token of each. The first of the N that has no finite largest logit.
std::optional<int64_t> logprobs(Cpu& cpu, Array<const float, 2> logits, Array<const int64_t, 1> rows,
                                Array<const int64_t, 1> tokens, Array<float, 1> logprob, Array<int32_t, 1> rank,
                                Array<int32_t, 2> top_ids, Array<float, 2> top_logprobs) {
  const int64_t O = int64_t(logits.shape(0)), V = int64_t(logits.shape(1)), N = int64_t(rows.size());
  const int64_t num_top = int64_t(top_ids.shape(1));
  for (const size_t size : {tokens.size(), logprob.size(), rank.size(), top_ids.shape(0), top_logprobs.shape(0)})
    require(int64_t(size) == N, "every array must have one entry per row that is asked for");
  require(int64_t(top_logprobs.shape(1)) == num_top && num_top <= V && V < INT32_MAX,
          "top_ids and top_logprobs must be (N, at most V)");
  for (int64_t i = 0; i < N; ++i)
    require(rows.data()[i] >= 0 && rows.data()[i] < O && tokens.data()[i] >= 0 && tokens.data()[i] < V,
            "a row or a token is not one of the logits");
  nb::gil_scoped_release release;
  return first_bad_row(cpu, N, [&](int, int64_t i) {
    return cpu.kernels->logprobs({logits.data() + rows.data()[i] * V, V, tokens.data()[i], num_top, logprob.data() + i,
                                  rank.data() + i, top_ids.data() + i * num_top, top_logprobs.data() + i * num_top});
  });
}

}  // namespace

void bind_sampling(nb::module_& m, nb::class_<Cpu>& cpu) {
  cpu.def("sample", &sample, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a, "position"_a,
          "out"_a)
      .def("logprobs", &logprobs, "logits"_a, "rows"_a, "tokens"_a, "logprob"_a, "rank"_a, "top_ids"_a,
           "top_logprobs"_a);
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
