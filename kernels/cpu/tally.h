// Where thread 0's time among other ranks went, over all steps so far. It writes; any thread may read.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace tinycluster {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class Tally {
 public:
  // `bubble_ns` is the part of `wait_ns` that was spent on the stage before this one.
  struct Times {
    int64_t communicate_ns, wait_ns, bubble_ns;
  };

  void begin(int64_t start_ns, bool is_bubble) {
    is_bubble_.store(is_bubble, std::memory_order_relaxed);
    since_ns_.store(start_ns, std::memory_order_release);
  }

  void end(int64_t waited_ns, int64_t communicated_ns) {
    grow(communicate_ns_, communicated_ns);
    grow(wait_ns_, waited_ns);
    if (is_bubble_.load(std::memory_order_relaxed)) grow(bubble_ns_, waited_ns);
    since_ns_.store(0, std::memory_order_release);
  }

  // A call that has not ended yet counts as waiting, which is what a long one does.
  Times times() const {
    const int64_t since = since_ns_.load(std::memory_order_acquire);
    const int64_t open = since ? std::max<int64_t>(now_ns() - since, 0) : 0;
    const bool is_bubble = is_bubble_.load(std::memory_order_relaxed);
    return {communicate_ns_.load(), wait_ns_.load() + open, bubble_ns_.load() + (is_bubble ? open : 0)};
  }

 private:
  static void grow(std::atomic<int64_t>& sum, int64_t by) {
    sum.store(sum.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }

  std::atomic<int64_t> communicate_ns_{0}, wait_ns_{0}, bubble_ns_{0};
  std::atomic<int64_t> since_ns_{0};  // 0: no call is under way
  std::atomic<bool> is_bubble_{false};
};

}  // namespace tinycluster
