// How long to look for something before sleeping until it comes.
#pragma once

#include <sched.h>

#include <chrono>

namespace tinycluster {

using Clock = std::chrono::steady_clock;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// First spins, which is fastest when the peer runs on another core; then looks once per turn of the scheduler, which
// lets a peer on this core run at once and is still cheaper than to be woken; then gives up.
class Patience {
 public:
  explicit Patience(std::chrono::nanoseconds spin) : spin_(spin) {}

  // Call between two looks. False when it is time to sleep.
  bool lasts() {
    const auto waited = Clock::now() - start_;
    if (waited < spin_) {
      relax();
      return true;
    }
    if (waited >= spin_ + kYield) return false;
    sched_yield();
    return true;
  }

 private:
  static constexpr std::chrono::microseconds kYield{200};

  std::chrono::nanoseconds spin_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace tinycluster
