// A bell in shared memory: wait for another thread or process by looking for a while, then sleeping on a futex.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

#include "patience.h"

namespace tinycluster {

// A sleeper looks up this often for a deadline, a dead peer or an aborted group that nobody rang for.
constexpr std::chrono::milliseconds kSlice{50};

// The futex is not private, so the same bell works between processes that map it at different addresses.
struct alignas(64) Bell {
  std::atomic<std::uint32_t> rings;
  std::atomic<std::uint32_t> sleepers;

  // Call after the store that a sleeper waits for. Both that store and the sleeper's load are sequentially
  // consistent: either the sleeper sees the value or the ringer sees the sleeper.
  void ring() {
    if (sleepers.load() != 0) ring_always();
  }

  void ring_always() {
    rings.fetch_add(1);
    syscall(SYS_futex, &rings, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }

  // Returns when ready() is true. Before and between sleeps it calls check(), which throws to end the wait.
  template <class Ready, class Check>
  void wait(std::chrono::nanoseconds spin, Ready ready, Check check) {
    Patience patience(spin);
    do {
      for (int look = 0; look < 16; ++look) {
        if (ready()) return;
        relax();
      }
    } while (patience.lasts());
    Sleeper sleeper(sleepers);
    for (;;) {
      const std::uint32_t heard = rings.load();
      if (ready()) return;
      check();
      sleep(heard);
    }
  }

 private:
  struct Sleeper {
    explicit Sleeper(std::atomic<std::uint32_t>& count) : count(count) { count.fetch_add(1); }
    ~Sleeper() { count.fetch_sub(1); }
    std::atomic<std::uint32_t>& count;
  };

  void sleep(std::uint32_t heard) {
    timespec slice{};
    slice.tv_nsec = std::chrono::nanoseconds(kSlice).count();
    syscall(SYS_futex, &rings, FUTEX_WAIT, heard, &slice, nullptr, 0);
  }
};

}  // namespace tinycluster
