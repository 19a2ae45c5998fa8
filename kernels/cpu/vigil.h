// How one call over sockets waits: it looks again and again for a while, then sleeps until a socket is ready.
#pragma once

#include <poll.h>

#include <algorithm>
#include <string>
#include <vector>

#include "call.h"
#include "failure.h"

namespace tinycluster {

// What the calls of one rank have in common.
struct Watch {
  std::size_t rank;
  double timeout_s;
  std::chrono::nanoseconds spin;
  Failure failure{};
  std::atomic<std::int64_t> waited_ns{0};
};

// The sockets that a call waits for, and the ranks at their other ends.
struct Pending {
  std::vector<pollfd> sockets;
  std::string ranks;

  void add(pollfd socket, std::size_t rank) {
    sockets.push_back(socket);
    ranks += (ranks.empty() ? "" : ", ") + std::to_string(rank);
  }
};

class Vigil {
 public:
  Vigil(Watch& watch, Call call)
      : watch_(watch), call_(call), patience_(watch.spin), deadline_(Clock::now() + seconds(watch.timeout_s)) {}
  Vigil(const Vigil&) = delete;
  Vigil& operator=(const Vigil&) = delete;
  ~Vigil() { note_progress(); }

  void note_progress() {
    if (!is_waiting_) return;
    is_waiting_ = false;
    const std::chrono::nanoseconds waited = Clock::now() - since_;
    watch_.waited_ns.fetch_add(waited.count(), std::memory_order_relaxed);
  }

  // Call between two looks that found nothing; pending() is asked only before sleep. Throws when the group broke or
  // when it is too late.
  template <class Ask>
  void look_away(Ask pending) {
    if (!is_waiting_) {
      is_waiting_ = true;
      since_ = Clock::now();
      patience_ = Patience(watch_.spin);
    }
    watch_.failure.check();
    if (!patience_.lasts()) sleep(pending());
  }

 private:
  static constexpr std::int64_t kSliceMs = 50;

  void sleep(Pending pending) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    if (left < 0) {
      watch_.failure.set(too_late(watch_.rank, watch_.timeout_s, call_, pending.ranks));
      watch_.failure.raise();
    }
    poll(pending.sockets.data(), pending.sockets.size(), static_cast<int>(std::min(left + 1, kSliceMs)));
  }

  Watch& watch_;
  Call call_;
  Patience patience_;
  Clock::time_point deadline_, since_;
  bool is_waiting_ = false;
};

}  // namespace tinycluster
