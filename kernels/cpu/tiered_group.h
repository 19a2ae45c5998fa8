// A group spread over nodes: shared memory inside each node, and the nodes' leaders among themselves over TCP.
#pragma once

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "group.h"
#include "tcp_group.h"

namespace tinycluster {

class TieredGroup {
 public:
  static constexpr bool kIsInMemory = false;

  // nodes[i] are the ranks on node i; `node` is this rank's group there, ranked as in nodes[i]. `leaders`, with one
  // rank per node, belongs to the first rank of each node and is null elsewhere. Both outlive this object.
  TieredGroup(std::size_t rank, std::vector<std::vector<std::size_t>> nodes, Group& node, TcpGroup* leaders)
      : rank_(rank), nodes_(std::move(nodes)), node_(node), leaders_(leaders) {
    for (std::size_t i = 0; i < nodes_.size(); ++i)
      for (const std::size_t r : nodes_[i]) {
        if (r == rank) my_node_ = i;
        ++size_;
      }
  }

  std::size_t rank() const { return rank_; }
  std::size_t size() const { return size_; }
  std::int64_t waited_ns() const { return node_.waited_ns() + (leaders_ ? leaders_->waited_ns() : 0); }

  // With the ranks of this node and, among leaders, with the leaders of the others.
  std::vector<LinkBytes> traffic() const {
    std::vector<LinkBytes> links(size_);
    const std::vector<LinkBytes> near = node_.traffic();
    for (std::size_t place = 0; place < near.size(); ++place) links[nodes_[my_node_][place]] = near[place];
    const std::vector<LinkBytes> far = leaders_ ? leaders_->traffic() : std::vector<LinkBytes>();
    for (std::size_t node = 0; node < far.size(); ++node)
      if (node != my_node_) links[nodes_[node].front()] = far[node];
    return links;
  }

  void all_reduce(std::int64_t* x, std::size_t n) {
    guarded([&] {
      node_.all_reduce(x, n);
      if (leaders_) leaders_->all_reduce(x, n);
      node_.broadcast(reinterpret_cast<std::byte*>(x), n * sizeof *x, 0);
    });
  }

  // The sums cross the network once per node; that each node's leader has them all costs no more.
  void reduce_scatter(std::int64_t* x, const std::size_t* counts) {
    all_reduce(x, std::accumulate(counts, counts + size_, std::size_t{0}));
  }

  // A sum per node first would add floats in another order than that of the ranks.
  void all_reduce(float* x, std::size_t n) {
    std::vector<float> addends(n * size_);
    const std::vector<std::size_t> bytes(size_, n * sizeof *x);
    all_gather(reinterpret_cast<const std::byte*>(x), bytes.data(), reinterpret_cast<std::byte*>(addends.data()));
    std::memcpy(x, addends.data(), n * sizeof *x);
    for (std::size_t r = 1; r < size_; ++r) add_to(x, addends.data() + r * n, n);
  }

  void all_gather(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    std::vector<std::size_t> of_nodes, of_node;  // lengths
    for (const std::vector<std::size_t>& ranks : nodes_) {
      std::vector<std::size_t> lengths;
      for (const std::size_t r : ranks) lengths.push_back(bytes[r]);
      of_nodes.push_back(total(lengths));
      if (of_nodes.size() == my_node_ + 1) of_node = lengths;
    }
    std::vector<std::byte> gathered(of_nodes[my_node_]), everything(total(of_nodes));
    guarded([&] {
      node_.all_gather(x, of_node.data(), gathered.data());
      if (leaders_) leaders_->all_gather(gathered.data(), of_nodes.data(), everything.data());
      node_.broadcast(everything.data(), everything.size(), 0);
    });
    deal_in_rank_order(everything.data(), bytes, out);
  }

  // Everything goes everywhere: what the nodes' leaders exchange is no more than that.
  void all_to_all(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    std::vector<std::size_t> of_ranks;
    for (std::size_t s = 0; s < size_; ++s)
      of_ranks.push_back(std::accumulate(bytes + s * size_, bytes + (s + 1) * size_, std::size_t{0}));
    std::vector<std::byte> everything(total(of_ranks));
    all_gather(x, of_ranks.data(), everything.data());
    const std::byte* from = everything.data();
    for (std::size_t s = 0; s < size_; ++s)
      for (std::size_t r = 0; r < size_; from += bytes[s * size_ + r++])
        if (r == rank_) {
          std::memcpy(out, from, bytes[s * size_ + r]);
          out += bytes[s * size_ + r];
        }
  }

  void broadcast(std::byte* x, std::size_t bytes, std::size_t root) {
    std::size_t home = 0, place = 0;
    for (std::size_t i = 0; i < nodes_.size(); ++i)
      for (std::size_t p = 0; p < nodes_[i].size(); ++p)
        if (nodes_[i][p] == root) home = i, place = p;
    guarded([&] {
      if (my_node_ == home) node_.broadcast(x, bytes, place);
      if (leaders_) leaders_->broadcast(x, bytes, home);
      if (my_node_ != home) node_.broadcast(x, bytes, 0);
    });
  }

  void send(const std::byte* x, std::size_t bytes, std::size_t to) {
    guarded([&] { node_.send(x, bytes, neighbour(to)); });
  }
  void recv(std::byte* x, std::size_t bytes, std::size_t source) {
    guarded([&] { node_.recv(x, bytes, neighbour(source)); });
  }

  void barrier() {
    guarded([&] {
      node_.barrier();
      if (leaders_) leaders_->barrier();
      node_.barrier();
    });
  }

  void abort(const std::string& reason) {
    node_.abort(reason);
    if (leaders_) leaders_->abort(reason);
  }

  void close() {
    node_.close();
    if (leaders_) leaders_->close();
  }

 private:
  // A failure among the leaders must reach those who wait inside the nodes, and the other way round.
  template <class Work>
  void guarded(Work work) {
    try {
      work();
    } catch (const GroupError& error) {
      abort(error.what());
      throw;
    }
  }

  static std::size_t total(const std::vector<std::size_t>& bytes) {
    return std::accumulate(bytes.begin(), bytes.end(), std::size_t{0});
  }

  // `parts` lie in the order of the nodes, out in that of the ranks.
  void deal_in_rank_order(const std::byte* parts, const std::size_t* bytes, std::byte* out) const {
    for (const std::vector<std::size_t>& ranks : nodes_)
      for (const std::size_t r : ranks) {
        std::memcpy(out + std::accumulate(bytes, bytes + r, std::size_t{0}), parts, bytes[r]);
        parts += bytes[r];
      }
  }

  std::size_t neighbour(std::size_t rank) const {
    const std::vector<std::size_t>& ranks = nodes_[my_node_];
    const auto found = std::find(ranks.begin(), ranks.end(), rank);
    if (found == ranks.end())
      throw std::invalid_argument("ranks " + std::to_string(rank_) + " and " + std::to_string(rank) +
                                  " are on different nodes: give them a TcpCommunicator");
    return static_cast<std::size_t>(found - ranks.begin());
  }

  std::size_t rank_, size_ = 0, my_node_ = 0;
  std::vector<std::vector<std::size_t>> nodes_;
  Group& node_;
  TcpGroup* leaders_;
};

}  // namespace tinycluster
