// One rank's place in a region: how it waits for the others, and how the group breaks.
#pragma once

#include <string>

#include "call.h"
#include "pulse.h"
#include "region.h"

namespace tinycluster {

class Member {
 public:
  // `fd` is the region's file, opened by this rank alone, or -1; the caller keeps it open.
  Member(Region region, std::size_t rank, double timeout_s, double spin_us, int fd)
      : region_(region),
        rank_(rank),
        timeout_s_(timeout_s),
        spin_(static_cast<std::int64_t>(spin_us * 1e3)),
        pulse_(fd, rank) {
    Presence absent = Presence::absent;
    if (!region_.state(rank).presence.compare_exchange_strong(absent, Presence::attached))
      throw GroupError("rank " + std::to_string(rank) + " is already taken in this group");
  }

  const Region& region() const { return region_; }
  std::size_t rank() const { return rank_; }
  std::size_t size() const { return region_.size(); }
  std::int64_t waited_ns() const { return waited_ns_.load(std::memory_order_relaxed); }

  // Returns when ready() is true. arrived(r) says of every rank whether it need not be waited for any more.
  template <class Ready, class Arrived>
  void wait(Bell& bell, Call call, Ready ready, Arrived arrived) {
    const Stopwatch watch(waited_ns_);
    const auto deadline = watch.start + seconds(timeout_s_);
    bell.wait(spin_, ready, [&] { check_peers(call, deadline, arrived); });
  }

  void check_whole() const {
    if (region_.state(rank_).presence.load() == Presence::left)
      throw GroupError("rank " + std::to_string(rank_) + " has closed its communicator");
    const Header& header = region_.header();
    const Health health = header.health.load();
    if (health == Health::whole) return;
    throw GroupError(health == Health::broken ? header.reason : "another rank broke the group");
  }

  [[noreturn]] void fail(const std::string& reason) {
    abort(reason);
    throw GroupError(reason);
  }

  // Ends every wait of the group, here and in other processes. The first reason is the one that all ranks report.
  void abort(const std::string& reason) {
    Header& header = region_.header();
    Health whole = Health::whole;
    if (header.health.compare_exchange_strong(whole, Health::breaking)) {
      std::snprintf(header.reason, kReasonBytes, "%s", reason.c_str());
      header.health.store(Health::broken);
    }
    ring_all();
  }

  void leave() {
    region_.state(rank_).presence.store(Presence::left);
    ring_all();
  }

 private:
  // Throws if the group broke, if a rank that is waited for has left or died, or if it is too late.
  template <class Arrived>
  void check_peers(Call call, Clock::time_point deadline, Arrived arrived) {
    check_whole();
    std::string missing;
    for (std::size_t r = 0; r < size(); ++r) {
      if (arrived(r)) continue;
      const Presence presence = region_.state(r).presence.load();
      const bool gone = presence == Presence::left || (presence == Presence::attached && pulse_.has_stopped(r));
      // It may have arrived and left since the first look.
      if (gone && !arrived(r))
        fail("rank " + std::to_string(r) + (presence == Presence::left ? " left" : " died") + " while rank " +
             std::to_string(rank_) + " waited for it in " + name_of(call));
      missing += (missing.empty() ? "" : ", ") + std::to_string(r);
    }
    if (Clock::now() >= deadline && !missing.empty()) fail(too_late(rank_, timeout_s_, call, missing));
  }

  void ring_all() {
    region_.header().bell.ring_always();
    for (std::size_t from = 0; from < size(); ++from)
      for (std::size_t to = 0; to < size(); ++to) region_.mailbox(from, to).bell.ring_always();
  }

  Region region_;
  std::size_t rank_;
  double timeout_s_;
  std::chrono::nanoseconds spin_;
  Pulse pulse_;
  std::atomic<std::int64_t> waited_ns_{0};
};

}  // namespace tinycluster
