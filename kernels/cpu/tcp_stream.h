// One socket between two ranks of a TCP group: typed frames, checked against what the receiver expects.
//
//     magic 4s | call u8 | zero 3 bytes | sequence u64 | epoch u64 | payload bytes u64 | payload        little-endian
//
// The receiver knows all fields beforehand, so a frame is right if its header's 32 bytes are the expected ones.
// Nothing here waits, except that a thread, started when first needed, writes what a message could not write at once.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "call.h"
#include "failure.h"

namespace tinycluster {

struct FrameHeader {
  char magic[4] = {'t', 'c', 'f', 'r'};
  Call call{};
  std::uint8_t zero[3] = {};
  std::uint64_t sequence = 0;
  std::uint64_t epoch = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(FrameHeader) == 32 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

// A frame on its way to the peer.
struct Outgoing {
  FrameHeader header;
  const std::byte* payload;
  std::size_t written = 0;  // of header and payload

  std::size_t total() const { return sizeof header + header.bytes; }
  bool is_done() const { return written == total(); }
  std::size_t payload_written() const { return written < sizeof header ? 0 : written - sizeof header; }
};

// A frame on its way from the peer.
struct Incoming {
  FrameHeader expected;
  FrameHeader header{};
  std::size_t read = 0;  // of header and payload

  bool is_done() const { return read == sizeof header + expected.bytes; }
  std::size_t payload_read() const { return read < sizeof header ? 0 : read - sizeof header; }
  std::size_t payload_left() const { return expected.bytes - payload_read(); }
};

class TcpStream {
 public:
  // Takes a descriptor of its own for the connected socket `fd`.
  TcpStream(int fd, std::size_t rank, std::size_t peer, std::uint64_t epoch, Failure& failure)
      : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)), rank_(rank), peer_(peer), epoch_(epoch), failure_(failure) {
    if (fd_ < 0 || fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) | O_NONBLOCK) != 0) {
      if (fd_ >= 0) ::close(fd_);
      throw GroupError("the socket to rank " + std::to_string(peer) + " cannot be used: " + std::strerror(errno));
    }
  }
  TcpStream(const TcpStream&) = delete;
  TcpStream& operator=(const TcpStream&) = delete;
  ~TcpStream() {
    shut();
    if (writer_.joinable()) writer_.join();
    ::close(fd_);
  }

  std::size_t peer() const { return peer_; }
  pollfd watched(bool for_reading, bool for_writing) const {
    return {fd_, static_cast<short>((for_reading ? POLLIN : 0) | (for_writing ? POLLOUT : 0)), 0};
  }

  Outgoing outgoing(Call call, const std::byte* x, std::size_t bytes) { return {header(call, sent_++, bytes), x}; }
  Incoming incoming(Call call, std::size_t bytes) { return {header(call, received_++, bytes)}; }

  // Writes what the socket takes of the next kPieceBytes. Frames that wait since earlier go first.
  bool push(Outgoing& frame) {
    std::lock_guard lock(mutex_);
    if (backlog_.empty()) return write(frame);
    queue(frame);
    return true;
  }

  // Writes what the socket takes and leaves a copy of the rest to the writer. False if the backlog is full.
  bool post(Outgoing& frame) {
    std::lock_guard lock(mutex_);
    if (!backlog_.empty() && backlog_bytes_ + frame.total() > kMaxBacklogBytes) return false;
    while (backlog_.empty() && !frame.is_done())
      if (!write(frame)) break;
    if (!frame.is_done()) queue(frame);
    return true;
  }

  // Reads at most `room` bytes of payload to `into`, and the header before them; returns how many bytes in all.
  std::size_t pull(Incoming& frame, std::byte* into, std::size_t room) {
    const std::size_t before = std::min(frame.read, sizeof frame.header);
    iovec parts[] = {{reinterpret_cast<std::byte*>(&frame.header) + before, sizeof frame.header - before},
                     {into, std::min(room, frame.payload_left())}};
    const ssize_t count = readv(fd_, parts, 2);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (count <= 0) lose();
    frame.read += static_cast<std::size_t>(count);
    if (before < sizeof frame.header && frame.read >= sizeof frame.header) check(frame);
    return static_cast<std::size_t>(count);
  }

  // Waits until the peer's kernel or ours has all that was posted, the group has broken, or it is too late.
  void linger(Clock::time_point deadline) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, deadline, [&] { return backlog_.empty() || failure_.is_set(); });
  }

  // Ends what anybody does with the socket, here and at the peer. `failure` is set before.
  void shut() {
    ::shutdown(fd_, SHUT_RDWR);
    std::lock_guard lock(mutex_);
    is_shut_ = true;
    changed_.notify_all();
  }

 private:
  // Both directions take turns, so that neither waits long for the other.
  static constexpr std::size_t kPieceBytes = 1 << 20;
  static constexpr std::size_t kMaxBacklogBytes = 256 << 20;
  static constexpr int kSliceMs = 100;

  FrameHeader header(Call call, std::uint64_t sequence, std::size_t bytes) const {
    FrameHeader header;
    header.call = call;
    header.sequence = sequence;
    header.epoch = epoch_;
    header.bytes = bytes;
    return header;
  }

  // One piece. The lock is held.
  bool write(Outgoing& frame) {
    const std::size_t before = std::min(frame.written, sizeof frame.header);
    const std::size_t from = frame.payload_written();
    iovec parts[] = {{reinterpret_cast<std::byte*>(&frame.header) + before, sizeof frame.header - before},
                     {const_cast<std::byte*>(frame.payload) + from, std::min(kPieceBytes, frame.header.bytes - from)}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t count = sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN && errno != EINTR) lose();
    frame.written += count < 0 ? 0 : static_cast<std::size_t>(count);
    return count > 0;
  }

  // The caller may overwrite its payload after the call, so what is left is copied. The lock is held.
  void queue(Outgoing& frame) {
    std::vector<std::byte> rest;
    rest.reserve(frame.total() - frame.written);
    const std::byte* header = reinterpret_cast<const std::byte*>(&frame.header);
    rest.insert(rest.end(), header + std::min(frame.written, sizeof frame.header), header + sizeof frame.header);
    rest.insert(rest.end(), frame.payload + frame.payload_written(), frame.payload + frame.header.bytes);
    frame.written = frame.total();
    backlog_bytes_ += rest.size();
    backlog_.push_back(std::move(rest));
    if (!writer_.joinable()) writer_ = std::thread([this] { write_backlog(); });
    changed_.notify_all();
  }

  void write_backlog() {
    std::unique_lock lock(mutex_);
    std::size_t written = 0;  // of the first in the backlog
    while (!is_shut_) {
      if (backlog_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const std::vector<std::byte>& first = backlog_.front();
      const ssize_t count = ::send(fd_, first.data() + written, first.size() - written, MSG_NOSIGNAL);
      if (count < 0 && errno != EAGAIN && errno != EINTR) {
        failure_.set(lost());
        return changed_.notify_all();
      }
      written += count < 0 ? 0 : static_cast<std::size_t>(count);
      if (written == first.size()) {
        backlog_bytes_ -= written;
        written = 0;
        backlog_.pop_front();
        changed_.notify_all();
      } else if (count < 0) {
        pollfd writable = watched(false, true);
        lock.unlock();
        poll(&writable, 1, kSliceMs);
        lock.lock();
      }
    }
  }

  std::string lost() const {
    return "rank " + std::to_string(peer_) + " left or died: rank " + std::to_string(rank_) + " lost its connection";
  }

  [[noreturn]] void lose() {
    failure_.set(lost());
    failure_.raise();
  }

  void check(const Incoming& frame) {
    if (std::memcmp(&frame.header, &frame.expected, sizeof frame.header) == 0) return;
    failure_.set("rank " + std::to_string(peer_) + " sent rank " + std::to_string(rank_) + " a frame with " +
                 first_difference(frame.header, frame.expected));
    failure_.raise();
  }

  static std::string first_difference(const FrameHeader& got, const FrameHeader& expected) {
    const auto instead = [](const char* field, const auto& one, const auto& other) {
      return std::string(field) + " " + one + " instead of " + other;
    };
    const auto number = [](std::uint64_t value) { return std::to_string(value); };
    if (std::memcmp(got.magic, expected.magic, sizeof got.magic) != 0) return "another magic number";
    if (got.call != expected.call) return instead("call", name_of(got.call), name_of(expected.call));
    if (got.sequence != expected.sequence) return instead("sequence", number(got.sequence), number(expected.sequence));
    if (got.epoch != expected.epoch) return instead("epoch", number(got.epoch), number(expected.epoch));
    if (got.bytes != expected.bytes) return instead("payload bytes", number(got.bytes), number(expected.bytes));
    return "padding that is not zero";
  }

  int fd_;
  std::size_t rank_, peer_;
  std::uint64_t epoch_;
  Failure& failure_;
  std::uint64_t sent_ = 0, received_ = 0;  // frames

  std::mutex mutex_;  // of all that follows, and of the socket's outgoing direction
  std::condition_variable changed_;
  std::deque<std::vector<std::byte>> backlog_;
  std::size_t backlog_bytes_ = 0;
  bool is_shut_ = false;
  std::thread writer_;
};

}  // namespace tinycluster
