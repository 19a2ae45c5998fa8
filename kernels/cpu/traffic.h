// What one rank of a group sent to every other and received from it so far: payload, without headers. Any thread reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace tinycluster {

using LinkBytes = std::pair<std::uint64_t, std::uint64_t>;  // sent, received

class Traffic {
 public:
  explicit Traffic(std::size_t size) : links_(size) {}

  void sent(std::size_t peer, std::size_t bytes) { grow(links_[peer].sent, bytes); }
  void received(std::size_t peer, std::size_t bytes) { grow(links_[peer].received, bytes); }
  void exchanged(std::size_t peer, std::size_t sent_bytes, std::size_t received_bytes) {
    sent(peer, sent_bytes), received(peer, received_bytes);
  }

  std::vector<LinkBytes> links() const {
    std::vector<LinkBytes> links;
    for (const Link& link : links_) links.emplace_back(link.sent.load(), link.received.load());
    return links;
  }

 private:
  struct Link {
    std::atomic<std::uint64_t> sent{0}, received{0};
  };

  // Each sum has one writer at a time: only a send and a recv may overlap.
  static void grow(std::atomic<std::uint64_t>& sum, std::size_t bytes) {
    sum.store(sum.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
  }

  std::vector<Link> links_;
};

}  // namespace tinycluster
