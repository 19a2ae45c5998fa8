// Collectives of one rank over a shared region. parallel/communicator.py states the contract.
//
// A meeting is one barrier in two halves: a rank arrives when what it shows lies in its slot, and may do something else
// before it waits for the others to arrive. Slots are filled before a meeting and read after it. A rank is never more
// than two uses of its slots ahead of the slowest reader, so with four slots it never overwrites what is being read.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "mail.h"
#include "member.h"
#include "traffic.h"

namespace tinycluster {

class Group {
 public:
  static constexpr bool kIsInMemory = true;

  Group(Region region, std::size_t rank, double timeout_s, double spin_us, int fd)
      : member_(region, rank, timeout_s, spin_us, fd),
        mail_(member_),
        traffic_(region.size()),
        region_(region),
        rank_(rank) {}

  std::size_t rank() const { return rank_; }
  std::size_t size() const { return region_.size(); }
  std::int64_t waited_ns() const { return member_.waited_ns(); }
  // A rank sends what others read of its slots, whatever else lies there.
  std::vector<LinkBytes> traffic() const { return traffic_.links(); }

  void attach() { meet({Call::attach, 0}); }
  void barrier() { meet({Call::barrier, 0}); }
  void send(const std::byte* x, std::size_t bytes, std::size_t to) {
    mail_.send(x, bytes, to);
    traffic_.sent(to, bytes);
  }
  void recv(std::byte* x, std::size_t bytes, std::size_t source) {
    mail_.recv(x, bytes, source);
    traffic_.received(source, bytes);
  }
  void abort(const std::string& reason) { member_.abort(reason); }
  void close() { member_.leave(); }

  // x (n,) becomes the sum over ranks; floats are added in rank order.
  template <class T>
  void all_reduce(T* x, std::size_t n) {
    const std::size_t bytes = n * sizeof(T);
    if (bytes == 0 || size() == 1) return;
    const bool is_short = bytes <= region_.slot_bytes() && bytes * (size() - 1) <= kReadAllBytes;
    is_short ? sum_whole(x, n) : sum_parts(x, n);
  }

  // x holds counts[r] numbers for every rank r. This rank's become the sums over ranks.
  void reduce_scatter(std::int64_t* x, const std::size_t* counts) {
    const std::size_t total = sum(counts, size()), longest = *std::max_element(counts, counts + size());
    std::int64_t* const mine = x + sum(counts, rank_);
    // Of every slot, so much is for each rank: all have something to add at every turn.
    const std::size_t stride = region_.slot_bytes() / size() / sizeof *x * sizeof *x;
    in_turns(
        longest * sizeof *x, stride, {Call::reduce_scatter, total * sizeof *x},
        [&](std::size_t start, std::size_t use) {
          const std::int64_t* part = x;
          for (std::size_t r = 0; r < size(); part += counts[r++])
            if (r != rank_)
              std::memcpy(slot(use) + r * stride, part + std::min(start / sizeof *x, counts[r]),
                          piece(counts[r] * sizeof *x, start, stride));
        },
        [&](std::size_t start, std::size_t use) {
          const std::size_t n = piece(counts[rank_] * sizeof *x, start, stride) / sizeof *x;
          for (std::size_t r = 0; r < size(); ++r)
            if (r != rank_ && n > 0) add_to(mine + start / sizeof *x, region_.slot(r, use) + rank_ * stride, n);
        });
    count([&](std::size_t r) { return LinkBytes(counts[r] * sizeof *x, counts[rank_] * sizeof *x); });
  }

  // out = the ranks' x end to end; bytes[r] is the length of rank r's x, which may be its place in out.
  void all_gather(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    const std::size_t longest = *std::max_element(bytes, bytes + size());
    const Agreement what{Call::all_gather, sum(bytes, size())};
    std::memmove(out + sum(bytes, rank_), x, bytes[rank_]);
    const std::size_t stride = region_.slot_bytes();
    in_turns(
        longest, stride, what,
        [&](std::size_t start, std::size_t use) {
          std::memcpy(slot(use), x + std::min(start, bytes[rank_]), piece(bytes[rank_], start, stride));
        },
        [&](std::size_t start, std::size_t use) {
          std::byte* target = out;
          for (std::size_t r = 0; r < size(); target += bytes[r++])
            if (r != rank_)
              std::memcpy(target + std::min(start, bytes[r]), region_.slot(r, use), piece(bytes[r], start, stride));
        });
    count([&](std::size_t r) { return LinkBytes(bytes[rank_], bytes[r]); });
  }

  // x is this rank's parts for every rank end to end, out every rank's part for this one.
  // Rank s has bytes[s * size + r] for rank r.
  void all_to_all(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    const std::size_t cells = size() * size(), stride = region_.slot_bytes() / size();
    const auto part = [&](std::size_t from, std::size_t to) { return bytes[from * size() + to]; };
    in_turns(
        *std::max_element(bytes, bytes + cells), stride, {Call::all_to_all, sum(bytes, cells)},
        [&](std::size_t start, std::size_t use) {
          const std::byte* from = x;
          for (std::size_t r = 0; r < size(); from += part(rank_, r++))
            if (r != rank_)
              std::memcpy(slot(use) + r * stride, from + std::min(start, part(rank_, r)),
                          piece(part(rank_, r), start, stride));
        },
        [&](std::size_t start, std::size_t use) {
          std::byte* to = out;
          for (std::size_t r = 0; r < size(); to += part(r++, rank_))
            if (r != rank_)
              std::memcpy(to + std::min(start, part(r, rank_)), region_.slot(r, use) + rank_ * stride,
                          piece(part(r, rank_), start, stride));
        });
    count([&](std::size_t r) { return LinkBytes(part(rank_, r), part(r, rank_)); });
    std::size_t to = 0;
    for (std::size_t r = 0; r < rank_; ++r) to += part(r, rank_);
    std::memcpy(out + to, x + sum(bytes + rank_ * size(), rank_), part(rank_, rank_));
  }

  void broadcast(std::byte* x, std::size_t bytes, std::size_t root) {
    const std::size_t stride = region_.slot_bytes();
    in_turns(
        bytes, stride, {Call::broadcast, bytes},
        [&](std::size_t start, std::size_t use) {
          if (rank_ == root) std::memcpy(slot(use), x + start, piece(bytes, start, stride));
        },
        [&](std::size_t start, std::size_t use) {
          if (rank_ != root) std::memcpy(x + start, region_.slot(root, use), piece(bytes, start, stride));
        });
    count([&](std::size_t r) { return LinkBytes(rank_ == root ? bytes : 0, r == root ? bytes : 0); });
  }

 private:
  // Up to here every rank reads the slots of all others, which takes one meeting instead of two.
  static constexpr std::size_t kReadAllBytes = 32768;
  // A sum is copied to where others read it while it is in the first-level cache.
  static constexpr std::size_t kSumBytes = 8192;

  // What a rank calls, which must be the same on all ranks.
  struct Agreement {
    Call call;
    std::uint64_t bytes;
    std::uint64_t packed() const { return static_cast<std::uint64_t>(call) << 56 | bytes; }
  };

  // bytes_of(r) is what went to rank r and what came from it.
  template <class BytesOf>
  void count(BytesOf bytes_of) {
    for (std::size_t r = 0; r < size(); ++r)
      if (r != rank_) {
        const auto [sent, received] = bytes_of(r);
        traffic_.exchanged(r, sent, received);
      }
  }

  std::byte* slot(std::size_t use) const { return region_.slot(rank_, use); }
  static std::size_t piece(std::size_t bytes, std::size_t start, std::size_t stride) {
    return bytes <= start ? 0 : std::min(stride, bytes - start);
  }
  static std::size_t sum(const std::size_t* bytes, std::size_t count) {
    std::size_t total = 0;
    for (std::size_t r = 0; r < count; ++r) total += bytes[r];
    return total;
  }

  // Calls show(start, use) and then, when all ranks have shown theirs, read(start, use), for each `stride` of `bytes`.
  // The next slotful is shown before the last is waited for, so that nobody waits for a rank that only reads.
  template <class Show, class Read>
  void in_turns(std::size_t bytes, std::size_t stride, Agreement what, Show show, Read read) {
    if (bytes == 0 || size() == 1) return;
    const auto show_next = [&](std::size_t start) {
      show(start, use_++);
      return arrive(what);
    };
    std::uint64_t shown = show_next(0);
    for (std::size_t start = 0; start < bytes; start += stride) {
      const std::uint64_t meeting = shown;
      const std::size_t use = use_ - 1;
      if (start + stride < bytes) shown = show_next(start + stride);
      await(meeting, what);
      read(start, use);
    }
  }

  template <class T>
  void sum_whole(T* x, std::size_t n) {
    std::memcpy(slot(use_), x, n * sizeof(T));
    meet({all_reduce_of<T>(), n * sizeof(T)});
    add_slots(x, 0, n, use_++);
    count([&](std::size_t) { return LinkBytes(n * sizeof(T), n * sizeof(T)); });
  }

  // Reduce-scatter, then all-gather: rank r adds part r of every slot and shows the sum in part r of its own, which
  // nobody else reads before. A slotful is shown before the sums of the last one are waited for.
  template <class T>
  void sum_parts(T* x, std::size_t n) {
    const Agreement what{all_reduce_of<T>(), n * sizeof(T)};
    const std::size_t stride = region_.slot_bytes() / sizeof(T);
    const auto show = [&](std::size_t start) {
      show_parts(x + start, std::min(stride, n - start), use_++);
      return arrive(what);
    };
    std::uint64_t shown = show(0);
    for (std::size_t start = 0; start < n; start += stride) {
      const std::size_t use = use_ - 1, length = std::min(stride, n - start);
      await(shown, what);
      sum_my_part(x + start, length, use);
      const std::uint64_t summed = arrive(what);
      if (start + stride < n) shown = show(start + stride);
      await(summed, what);
      for (std::size_t r = 0; r < size(); ++r) {
        const std::size_t from = part_start(r, length), to = part_start(r + 1, length);
        if (r != rank_) std::memcpy(x + start + from, region_.slot(r, use) + from * sizeof(T), (to - from) * sizeof(T));
      }
      // To r goes its part of this rank's addend and this rank's part of the sum, and as much comes from there.
      count([&](std::size_t r) {
        const std::size_t both = part_start(r + 1, length) - part_start(r, length) + part_start(rank_ + 1, length) -
                                 part_start(rank_, length);
        return LinkBytes(both * sizeof(T), both * sizeof(T));
      });
    }
  }

  std::size_t part_start(std::size_t part, std::size_t n) const { return n * part / size(); }

  // What the others add up; this rank's own part is read only where it must be added in rank order.
  template <class T>
  void show_parts(const T* x, std::size_t n, std::size_t use) const {
    const std::size_t hole = sums_commute<T>() ? part_start(rank_, n) : n;
    const std::size_t rest = sums_commute<T>() ? part_start(rank_ + 1, n) : n;
    std::memcpy(slot(use), x, hole * sizeof(T));
    std::memcpy(slot(use) + rest * sizeof(T), x + rest, (n - rest) * sizeof(T));
  }

  // Of integers, and of two floats, any order gives the same bits.
  template <class T>
  bool sums_commute() const {
    return std::is_integral_v<T> || size() == 2;
  }

  template <class T>
  void sum_my_part(T* x, std::size_t n, std::size_t use) const {
    constexpr std::size_t step = kSumBytes / sizeof(T);
    const std::size_t end = part_start(rank_ + 1, n);
    for (std::size_t at = part_start(rank_, n); at < end; at += step) {
      const std::size_t count = std::min(step, end - at);
      add_slots(x + at, at, count, use);
      std::memcpy(slot(use) + at * sizeof(T), x + at, count * sizeof(T));
    }
  }

  // x (n,), this rank's addend, becomes the sum of the ranks' slots [start, start + n).
  template <class T>
  void add_slots(T* x, std::size_t start, std::size_t n, std::size_t use) const {
    const auto addend = [&](std::size_t r) { return region_.slot(r, use) + start * sizeof(T); };
    if (sums_commute<T>()) {
      for (std::size_t r = 0; r < size(); ++r)
        if (r != rank_) add_to(x, addend(r), n);
    } else {
      std::memcpy(x, addend(0), n * sizeof(T));
      for (std::size_t r = 1; r < size(); ++r) add_to(x, addend(r), n);
    }
  }

  void meet(Agreement what) { await(arrive(what), what); }

  // Returns the number of the meeting.
  std::uint64_t arrive(Agreement what) {
    member_.check_whole();
    RankState& mine = region_.state(rank_);
    mine.calls[meetings_ % kSlots] = what.packed();
    mine.arrived.store(++meetings_);
    // Whoever completes the meeting rings; an earlier rank would only wake sleepers for nothing.
    if (have_all_arrived(meetings_)) region_.header().bell.ring();
    return meetings_;
  }

  void await(std::uint64_t meeting, Agreement what) {
    if (!have_all_arrived(meeting))
      member_.wait(
          region_.header().bell, what.call, [&] { return have_all_arrived(meeting); },
          [&](std::size_t r) { return has_arrived(r, meeting); });
    for (std::size_t r = 0; r < size(); ++r) {
      const std::uint64_t theirs = region_.state(r).calls[(meeting - 1) % kSlots];
      if (theirs != what.packed()) member_.fail(disagreement(r, what, theirs));
    }
  }

  bool has_arrived(std::size_t r, std::uint64_t meeting) const { return region_.state(r).arrived.load() >= meeting; }
  bool have_all_arrived(std::uint64_t meeting) const {
    for (std::size_t r = 0; r < size(); ++r)
      if (!has_arrived(r, meeting)) return false;
    return true;
  }

  std::string disagreement(std::size_t other, Agreement mine, std::uint64_t theirs) const {
    return "rank " + std::to_string(rank_) + " called " + name_of(mine.call) + " of " + std::to_string(mine.bytes) +
           " bytes while rank " + std::to_string(other) + " called " + name_of(static_cast<Call>(theirs >> 56)) +
           " of " + std::to_string(theirs << 8 >> 8) + " bytes";
  }

  Member member_;
  Mail mail_;
  Traffic traffic_;
  Region region_;
  std::size_t rank_;
  std::uint64_t meetings_ = 0;
  std::uint64_t use_ = 0;
};

}  // namespace tinycluster
