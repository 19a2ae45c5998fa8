// Collectives of one rank over a shared region. parallel/communicator.py states the contract.
//
// A meeting is one barrier: every rank publishes, counts itself in, and waits until all are counted in. Slots are
// filled before a meeting and read after it. A slot is filled again two uses later, and the meeting in between is
// reached by every rank only after it has read the slot: so one meeting per chunk is enough.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "pulse.h"
#include "region.h"

namespace tinycluster {

struct GroupError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Call : std::uint64_t { attach = 1, all_reduce, all_gather, broadcast, barrier, send, recv };

inline const char* name_of(Call call) {
  constexpr const char* names[] = {"", "attach", "all_reduce", "all_gather", "broadcast", "barrier", "send", "recv"};
  return names[static_cast<std::size_t>(call)];
}

// Adds the time until its end to a sum, however that end comes.
struct Stopwatch {
  explicit Stopwatch(std::atomic<std::int64_t>& sum_ns) : sum_ns(sum_ns) {}
  ~Stopwatch() { sum_ns.fetch_add(std::chrono::nanoseconds(Clock::now() - start).count(), std::memory_order_relaxed); }
  std::atomic<std::int64_t>& sum_ns;
  Clock::time_point start = Clock::now();
};

class Group {
 public:
  // `fd` is the region's file, opened by this rank alone, or -1; the caller keeps it open.
  Group(Region region, std::size_t rank, double timeout_s, double spin_us, int fd)
      : region_(region),
        rank_(rank),
        timeout_s_(timeout_s),
        spin_(static_cast<std::int64_t>(spin_us * 1e3)),
        pulse_(fd, rank) {
    Presence absent = Presence::absent;
    if (!region_.state(rank).presence.compare_exchange_strong(absent, Presence::attached))
      throw GroupError("rank " + std::to_string(rank) + " is already taken in this group");
  }

  std::size_t rank() const { return rank_; }
  std::size_t size() const { return region_.size(); }
  std::int64_t waited_ns() const { return waited_ns_.load(std::memory_order_relaxed); }

  void attach() { meet(Call::attach, 0); }
  void barrier() { meet(Call::barrier, 0); }

  // x (n,) becomes the sum over ranks, taken in rank order.
  template <class T>
  void all_reduce(T* x, std::size_t n) {
    const std::size_t chunk = region_.slot_bytes() / sizeof(T);
    for (std::size_t start = 0; start < n && size() > 1; start += chunk) {
      const std::size_t count = std::min(chunk, n - start);
      if (size() == 2 || count * sizeof(T) <= kSumWholeBytes) {
        sum_whole(x + start, count, n * sizeof(T));
      } else {
        sum_parts(x + start, count, n * sizeof(T));
      }
    }
  }

  // out = the ranks' x end to end; bytes[r] is the length of rank r's x.
  void all_gather(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    const std::size_t longest = *std::max_element(bytes, bytes + size());
    std::size_t total = 0;
    for (std::size_t r = 0; r < size(); ++r) total += bytes[r];
    for (std::size_t start = 0; start < longest; start += region_.slot_bytes()) {
      std::memcpy(my_slot(), x + std::min(start, bytes[rank_]), piece(bytes[rank_], start));
      meet(Call::all_gather, total);
      std::byte* target = out;
      for (std::size_t r = 0; r < size(); ++r) {
        std::memcpy(target + std::min(start, bytes[r]), region_.slot(r, use_), piece(bytes[r], start));
        target += bytes[r];
      }
      ++use_;
    }
  }

  void broadcast(std::byte* x, std::size_t bytes, std::size_t root) {
    for (std::size_t start = 0; start < bytes && size() > 1; start += region_.slot_bytes()) {
      if (rank_ == root) std::memcpy(my_slot(), x + start, piece(bytes, start));
      meet(Call::broadcast, bytes);
      if (rank_ != root) std::memcpy(x + start, region_.slot(root, use_), piece(bytes, start));
      ++use_;
    }
  }

  // Returns once the message lies in the mailbox: it waits for `recv` only as far as the mailbox is full.
  void send(const std::byte* x, std::size_t bytes, std::size_t to) {
    const std::uint64_t length = bytes;
    put(reinterpret_cast<const std::byte*>(&length), sizeof length, to);
    put(x, bytes, to);
  }

  void recv(std::byte* x, std::size_t bytes, std::size_t source) {
    std::uint64_t length = 0;
    take(reinterpret_cast<std::byte*>(&length), sizeof length, source);
    if (length != bytes)
      fail("rank " + std::to_string(source) + " sent " + std::to_string(length) + " bytes where rank " +
           std::to_string(rank_) + " expected " + std::to_string(bytes));
    take(x, bytes, source);
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

  void close() {
    region_.state(rank_).presence.store(Presence::left);
    ring_all();
  }

 private:
  // Up to here every rank reads all slots itself, which saves a meeting.
  static constexpr std::size_t kSumWholeBytes = 16384;
  // A long message is published in pieces, so that the receiver copies while the sender still does.
  static constexpr std::size_t kPieceBytes = 65536;

  std::byte* my_slot() const { return region_.slot(rank_, use_); }
  std::size_t piece(std::size_t bytes, std::size_t start) const {
    return bytes <= start ? 0 : std::min(region_.slot_bytes(), bytes - start);
  }

  template <class T>
  void sum_whole(T* x, std::size_t n, std::size_t total_bytes) {
    std::memcpy(my_slot(), x, n * sizeof(T));
    meet(Call::all_reduce, total_bytes);
    sum_slots(x, 0, n);
    ++use_;
  }

  // Reduce-scatter, then all-gather: rank r adds part r of all slots into part r of its own, which only r reads.
  template <class T>
  void sum_parts(T* x, std::size_t n, std::size_t total_bytes) {
    const auto part_start = [&](std::size_t r) { return n * r / size(); };
    std::memcpy(my_slot(), x, n * sizeof(T));
    meet(Call::all_reduce, total_bytes);
    const std::size_t start = part_start(rank_), count = part_start(rank_ + 1) - start;
    sum_slots(x + start, start, count);
    std::memcpy(reinterpret_cast<T*>(my_slot()) + start, x + start, count * sizeof(T));
    meet(Call::all_reduce, total_bytes);
    for (std::size_t r = 0; r < size(); ++r) {
      const std::size_t from = part_start(r);
      std::memcpy(x + from, reinterpret_cast<const T*>(region_.slot(r, use_)) + from,
                  (part_start(r + 1) - from) * sizeof(T));
    }
    ++use_;
  }

  // x (n,) = the ranks' slots [start, start + n) added in rank order. Integers wrap.
  template <class T>
  void sum_slots(T* x, std::size_t start, std::size_t n) const {
    using Sum = std::conditional_t<std::is_integral_v<T>, std::uint64_t, T>;
    Sum* sum = reinterpret_cast<Sum*>(x);
    std::memcpy(sum, reinterpret_cast<const Sum*>(region_.slot(0, use_)) + start, n * sizeof(T));
    for (std::size_t r = 1; r < size(); ++r) {
      const Sum* addend = reinterpret_cast<const Sum*>(region_.slot(r, use_)) + start;
      for (std::size_t i = 0; i < n; ++i) sum[i] += addend[i];
    }
  }

  void meet(Call call, std::uint64_t bytes) {
    check_whole();
    const std::uint64_t what = static_cast<std::uint64_t>(call) << 56 | bytes;
    RankState& mine = region_.state(rank_);
    mine.calls[meetings_ % 2] = what;
    mine.arrived.store(++meetings_);
    std::size_t next = 0;  // ranks below `next` have been seen to arrive
    const auto all_arrived = [&] {
      while (next < size() && region_.state(next).arrived.load() >= meetings_) ++next;
      return next == size();
    };
    // Whoever completes the meeting rings; an earlier rank would only wake sleepers for nothing.
    if (all_arrived()) {
      region_.header().bell.ring();
    } else {
      wait(region_.header().bell, call, all_arrived,
           [&](std::size_t r) { return region_.state(r).arrived.load() >= meetings_; });
    }
    for (std::size_t r = 0; r < size(); ++r)
      if (region_.state(r).calls[(meetings_ - 1) % 2] != what) fail(disagreement(r, call, bytes));
  }

  void put(const std::byte* x, std::size_t bytes, std::size_t to) {
    Mailbox& box = region_.mailbox(rank_, to);
    while (bytes > 0) {
      const auto room = [&] { return capacity() - (box.written.load() - box.taken.load()); };
      wait_for(box, Call::send, to, [&] { return room() > 0; });
      const std::size_t at = box.written.load() % capacity();
      const std::size_t count = std::min({bytes, kPieceBytes, static_cast<std::size_t>(room()), capacity() - at});
      std::memcpy(region_.ring(rank_, to) + at, x, count);
      box.written.store(box.written.load() + count);
      box.bell.ring();
      x += count, bytes -= count;
    }
  }

  void take(std::byte* x, std::size_t bytes, std::size_t source) {
    Mailbox& box = region_.mailbox(source, rank_);
    while (bytes > 0) {
      const auto filled = [&] { return box.written.load() - box.taken.load(); };
      wait_for(box, Call::recv, source, [&] { return filled() > 0; });
      const std::size_t at = box.taken.load() % capacity();
      const std::size_t count = std::min({bytes, kPieceBytes, static_cast<std::size_t>(filled()), capacity() - at});
      std::memcpy(x, region_.ring(source, rank_) + at, count);
      box.taken.store(box.taken.load() + count);
      box.bell.ring();
      x += count, bytes -= count;
    }
  }

  std::size_t capacity() const { return region_.mailbox_bytes(); }

  template <class Ready>
  void wait_for(Mailbox& box, Call call, std::size_t peer, Ready ready) {
    check_whole();
    if (!ready()) wait(box.bell, call, ready, [&](std::size_t r) { return r != peer || ready(); });
  }

  // Returns when ready() is true; arrived(r) says of every rank whether it is still waited for.
  template <class Ready, class Arrived>
  void wait(Bell& bell, Call call, Ready ready, Arrived arrived) {
    const Stopwatch watch(waited_ns_);
    const auto deadline =
        watch.start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s_));
    bell.wait(spin_, ready, [&] { check_peers(call, deadline, arrived); });
  }

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
    if (Clock::now() < deadline || missing.empty()) return;
    char waited[32];
    std::snprintf(waited, sizeof waited, "%g", timeout_s_);
    fail("rank " + std::to_string(rank_) + " waited " + waited + " s in " + name_of(call) + " for rank " + missing);
  }

  void check_whole() {
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

  std::string disagreement(std::size_t other, Call call, std::uint64_t bytes) const {
    const std::uint64_t what = region_.state(other).calls[(meetings_ - 1) % 2];
    const std::uint64_t kind = std::min<std::uint64_t>(what >> 56, static_cast<std::uint64_t>(Call::recv));
    return "rank " + std::to_string(rank_) + " called " + name_of(call) + " of " + std::to_string(bytes) +
           " bytes while rank " + std::to_string(other) + " called " + name_of(static_cast<Call>(kind)) + " of " +
           std::to_string(what << 8 >> 8) + " bytes";
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
  std::uint64_t meetings_ = 0;
  std::uint64_t use_ = 0;
};

}  // namespace tinycluster
