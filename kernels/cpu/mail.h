// Messages from one rank to another through the rings of a region.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "member.h"

namespace tinycluster {

class Mail {
 public:
  explicit Mail(Member& member) : member_(member), region_(member.region()), rank_(member.rank()) {}

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
      member_.fail("rank " + std::to_string(source) + " sent " + std::to_string(length) + " bytes where rank " +
                   std::to_string(rank_) + " expected " + std::to_string(bytes));
    take(x, bytes, source);
  }

 private:
  // A long message is published in pieces, so that the receiver copies one while the sender copies the next.
  static constexpr std::size_t kPieceBytes = 32768;

  std::size_t capacity() const { return region_.mailbox_bytes(); }
  std::size_t piece(std::size_t bytes, std::size_t available, std::size_t at) const {
    return std::min({bytes, kPieceBytes, std::max<std::size_t>(kLine, capacity() / 4), available, capacity() - at});
  }

  void put(const std::byte* x, std::size_t bytes, std::size_t to) {
    Mailbox& box = region_.mailbox(rank_, to);
    std::uint64_t written = box.written.load(std::memory_order_relaxed);
    while (bytes > 0) {
      const auto room = [&] { return capacity() - (written - box.taken.load()); };
      wait_for(box, Call::send, to, [&] { return room() > 0; });
      const std::size_t at = written % capacity();
      const std::size_t count = piece(bytes, room(), at);
      std::memcpy(region_.ring(rank_, to) + at, x, count);
      box.written.store(written += count);
      box.bell.ring();
      x += count, bytes -= count;
    }
  }

  void take(std::byte* x, std::size_t bytes, std::size_t source) {
    Mailbox& box = region_.mailbox(source, rank_);
    std::uint64_t taken = box.taken.load(std::memory_order_relaxed);
    while (bytes > 0) {
      const auto filled = [&] { return box.written.load() - taken; };
      wait_for(box, Call::recv, source, [&] { return filled() > 0; });
      const std::size_t at = taken % capacity();
      const std::size_t count = piece(bytes, filled(), at);
      std::memcpy(x, region_.ring(source, rank_) + at, count);
      box.taken.store(taken += count);
      box.bell.ring();
      x += count, bytes -= count;
    }
  }

  template <class Ready>
  void wait_for(Mailbox& box, Call call, std::size_t peer, Ready ready) {
    member_.check_whole();
    if (!ready()) member_.wait(box.bell, call, ready, [&](std::size_t r) { return r != peer || ready(); });
  }

  Member& member_;
  Region region_;
  std::size_t rank_;
};

}  // namespace tinycluster
