// What the groups of every kind have in common: the names of their calls, their error and the clock of their waits.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "patience.h"

namespace tinycluster {

struct GroupError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Sums of integers and of floats are told apart; elsewhere only the number of bytes counts.
enum class Call : std::uint8_t {
  attach = 1,
  all_reduce,
  all_reduce_f32,
  all_gather,
  broadcast,
  barrier,
  send,
  recv,
  reduce_scatter,
  all_to_all
};

inline const char* name_of(Call call) {
  constexpr const char* names[] = {
      "an unknown call", "attach", "all_reduce", "all_reduce of float32", "all_gather", "broadcast",
      "barrier",         "send",   "recv",       "reduce_scatter",        "all_to_all"};
  const auto index = static_cast<std::size_t>(call);
  return names[index < std::size(names) ? index : 0];
}

template <class T>
constexpr Call all_reduce_of() {
  return std::is_integral_v<T> ? Call::all_reduce : Call::all_reduce_f32;
}

// x (n,) += addend (n,). Integers wrap.
template <class T>
void add_to(T* x, const void* addend, std::size_t n) {
  using Sum = std::conditional_t<std::is_integral_v<T>, std::uint64_t, T>;
  Sum* sum = reinterpret_cast<Sum*>(x);
  const Sum* more = static_cast<const Sum*>(addend);
  for (std::size_t i = 0; i < n; ++i) sum[i] += more[i];
}

// Adds the time until its end to a sum, however that end comes.
struct Stopwatch {
  explicit Stopwatch(std::atomic<std::int64_t>& sum_ns) : sum_ns(sum_ns) {}
  ~Stopwatch() { sum_ns.fetch_add(std::chrono::nanoseconds(Clock::now() - start).count(), std::memory_order_relaxed); }
  std::atomic<std::int64_t>& sum_ns;
  Clock::time_point start = Clock::now();
};

inline Clock::duration seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
}

inline std::string too_late(std::size_t rank, double timeout_s, Call call, const std::string& missing) {
  char waited[32];
  std::snprintf(waited, sizeof waited, "%g", timeout_s);
  return "rank " + std::to_string(rank) + " waited " + waited + " s in " + name_of(call) + " for rank " + missing;
}

}  // namespace tinycluster
