// Collectives of one rank over one socket to every other. parallel/communicator.py states the contract.
//
// A collective sends and receives at the same time on all sockets: nobody waits with sending until others have read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tcp_stream.h"
#include "traffic.h"
#include "vigil.h"

namespace tinycluster {

class TcpGroup {
 public:
  static constexpr bool kIsInMemory = false;

  // fds[r] is the socket to rank r; this rank's own is not looked at.
  TcpGroup(const std::vector<int>& fds, std::size_t rank, std::uint64_t epoch, double timeout_s, double spin_us)
      : watch_{rank, timeout_s, std::chrono::nanoseconds(static_cast<std::int64_t>(spin_us * 1e3))},
        streams_(fds.size()),
        traffic_(fds.size()) {
    for (std::size_t r = 0; r < fds.size(); ++r)
      if (r != rank) streams_[r] = std::make_unique<TcpStream>(fds[r], rank, r, epoch, watch_.failure);
  }

  std::size_t rank() const { return watch_.rank; }
  std::size_t size() const { return streams_.size(); }
  std::int64_t waited_ns() const { return watch_.waited_ns.load(std::memory_order_relaxed); }
  std::vector<LinkBytes> traffic() const { return traffic_.links(); }

  // x (n,) becomes the sum over ranks; floats are added in rank order.
  template <class T>
  void all_reduce(T* x, std::size_t n) {
    if (n == 0 || size() == 1) return;
    if (size() == 2) return add_peer(x, n);
    if (n * sizeof(T) < kScatterBytes) return sum_whole(x, n);
    for (std::size_t start = 0; start < n; start += kChunkBytes / sizeof(T))
      sum_parts(x + start, std::min(kChunkBytes / sizeof(T), n - start));
  }

  // x holds counts[r] numbers for every rank r. This rank's become the sums over ranks.
  void reduce_scatter(std::int64_t* x, const std::size_t* counts) {
    const std::size_t count = counts[rank()], bytes = count * sizeof *x;
    std::int64_t* mine = nullptr;
    addends_.resize(std::max(addends_.size(), bytes * size()));
    std::vector<Flow> flows = both_ways();
    for (std::size_t r = 0; r < size(); x += counts[r++]) {
      flows[r] = {bytes_of(x), counts[r] * sizeof *x, addends_.data() + r * bytes, bytes};
      if (r == rank()) mine = x;
    }
    exchange(Call::reduce_scatter, flows);
    for (std::size_t r = 0; r < size(); ++r)
      if (r != rank()) add_to(mine, addends_.data() + r * bytes, count);
  }

  // out = the ranks' x end to end; bytes[r] is the length of rank r's x, which may be its place in out.
  void all_gather(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    std::vector<Flow> flows = both_ways();
    for (std::size_t r = 0; r < size(); out += bytes[r++]) {
      flows[r] = {x, bytes[rank()], out, bytes[r]};
      if (r == rank()) std::memmove(out, x, bytes[r]);
    }
    exchange(Call::all_gather, flows);
  }

  // x is this rank's parts for every rank end to end, out every rank's part for this one.
  // Rank s has bytes[s * size + r] for rank r.
  void all_to_all(const std::byte* x, const std::size_t* bytes, std::byte* out) {
    std::vector<Flow> flows = both_ways();
    for (std::size_t r = 0; r < size(); ++r) {
      const std::size_t to_r = bytes[rank() * size() + r], from_r = bytes[r * size() + rank()];
      flows[r] = {x, to_r, out, from_r};
      if (r == rank()) std::memcpy(out, x, to_r);
      x += to_r, out += from_r;
    }
    exchange(Call::all_to_all, flows);
  }

  void broadcast(std::byte* x, std::size_t bytes, std::size_t root) {
    std::vector<Flow> flows(size());
    for (std::size_t r = 0; r < size(); ++r) {
      if (rank() == root) flows[r] = {x, bytes, nullptr, 0, true, false};
      if (rank() != root && r == root) flows[r] = {nullptr, 0, x, bytes, false, true};
    }
    exchange(Call::broadcast, flows);
  }

  void barrier() { exchange(Call::barrier, both_ways()); }

  // Returns once the message is on its way: it waits for the peer only while a very long backlog lies before it.
  void send(const std::byte* x, std::size_t bytes, std::size_t to) {
    TcpStream& stream = stream_to(to);
    guarded([&] {
      Vigil vigil(watch_, Call::send);
      Outgoing frame = stream.outgoing(Call::send, x, bytes);
      while (!stream.post(frame)) vigil.look_away([&] { return pending(stream, false, false); });
    });
    traffic_.sent(to, bytes);
  }

  void recv(std::byte* x, std::size_t bytes, std::size_t source) {
    TcpStream& stream = stream_to(source);
    guarded([&] {
      Vigil vigil(watch_, Call::recv);
      Incoming frame = stream.incoming(Call::send, bytes);
      while (!frame.is_done()) {
        if (stream.pull(frame, x + frame.payload_read(), bytes) > 0) {
          vigil.note_progress();
        } else {
          vigil.look_away([&] { return pending(stream, true, false); });
        }
      }
    });
    traffic_.received(source, bytes);
  }

  // Ends every wait of this rank, from any thread, and its peers' waits for it.
  void abort(const std::string& reason) {
    watch_.failure.set(reason);
    for (const auto& stream : streams_)
      if (stream) stream->shut();
  }

  // Gives what was sent a second to reach the peers, then leaves.
  void close() {
    const auto deadline = Clock::now() + seconds(kLingerS);
    for (const auto& stream : streams_)
      if (stream) stream->linger(deadline);
    abort("rank " + std::to_string(rank()) + " has closed its communicator");
  }

 private:
  // From here on a sum of more than two ranks sends every element twice instead of size - 1 times.
  static constexpr std::size_t kScatterBytes = 64 * 1024;
  static constexpr std::size_t kChunkBytes = 1 << 20;
  // What the peer may be ahead of this rank's sums: it stays in the second-level cache.
  static constexpr std::size_t kStagingBytes = 256 * 1024;
  static constexpr double kLingerS = 1.0;

  // What goes to a rank and what comes from it in an exchange.
  struct Flow {
    const std::byte* out = nullptr;
    std::size_t out_bytes = 0;
    std::byte* in = nullptr;
    std::size_t in_bytes = 0;
    bool has_out = true, has_in = true;
  };

  // One Flow per rank, none of them to this rank itself.
  std::vector<Flow> both_ways() const { return std::vector<Flow>(size()); }

  TcpStream& stream_to(std::size_t peer) const {
    if (peer == rank()) throw std::invalid_argument("a rank cannot send to itself over TCP");
    return *streams_[peer];
  }

  static Pending pending(const TcpStream& stream, bool for_reading, bool for_writing) {
    Pending pending;
    pending.add(stream.watched(for_reading, for_writing), stream.peer());
    return pending;
  }

  // A call, which breaks the group if it fails.
  template <class Work>
  void guarded(Work work) {
    watch_.failure.check();
    try {
      work();
    } catch (const GroupError& error) {
      abort(error.what());
      watch_.failure.raise();
    }
  }

  // One socket's part of an exchange.
  struct Route {
    TcpStream* stream;
    std::byte* into;
    Outgoing out;
    Incoming in;
    bool has_out, has_in;

    bool is_sending() const { return has_out && !out.is_done(); }
    bool is_receiving() const { return has_in && !in.is_done(); }
    bool move() {
      const bool has_sent = is_sending() && stream->push(out);
      return (is_receiving() && stream->pull(in, into + in.payload_read(), in.payload_left()) > 0) || has_sent;
    }
  };

  void exchange(Call call, const std::vector<Flow>& flows) {
    guarded([&] {
      std::vector<Route> routes;
      for (std::size_t r = 0; r < size(); ++r) {
        const Flow& flow = flows[r];
        if (r == rank() || !(flow.has_out || flow.has_in)) continue;
        TcpStream* stream = streams_[r].get();
        routes.push_back({stream, flow.in, {}, {}, flow.has_out, flow.has_in});
        if (flow.has_out) routes.back().out = stream->outgoing(call, flow.out, flow.out_bytes);
        if (flow.has_in) routes.back().in = stream->incoming(call, flow.in_bytes);
      }
      move_all(call, routes);
    });
    for (std::size_t r = 0; r < size(); ++r)
      if (r != rank()) traffic_.exchanged(r, flows[r].out_bytes, flows[r].in_bytes);
  }

  void move_all(Call call, std::vector<Route>& routes) {
    Vigil vigil(watch_, call);
    const auto is_busy = [](const Route& route) { return route.is_sending() || route.is_receiving(); };
    while (std::any_of(routes.begin(), routes.end(), is_busy)) {
      bool has_moved = false;
      for (Route& route : routes) has_moved |= route.move();
      if (has_moved) {
        vigil.note_progress();
        continue;
      }
      vigil.look_away([&] {
        Pending pending;
        for (const Route& route : routes)
          if (is_busy(route))
            pending.add(route.stream->watched(route.is_receiving(), route.is_sending()), route.stream->peer());
        return pending;
      });
    }
  }

  // The sum of two ranks: what arrives is added where this rank's own values have been sent.
  template <class T>
  void add_peer(T* x, std::size_t n) {
    guarded([&] {
      TcpStream& stream = *streams_[1 - rank()];
      const Call call = all_reduce_of<T>();
      const std::size_t bytes = n * sizeof(T);
      Outgoing out = stream.outgoing(call, reinterpret_cast<const std::byte*>(x), bytes);
      Incoming in = stream.incoming(call, bytes);
      staging_.resize(std::max(staging_.size(), std::min(bytes, kStagingBytes)));
      Vigil vigil(watch_, call);
      std::size_t head = 0, tail = 0, added = 0;  // staging_[head, tail) waits to be added to x from byte `added` on
      while (added < bytes || !out.is_done()) {
        bool has_moved = !out.is_done() && stream.push(out);
        if (!in.is_done() && tail < staging_.size()) {
          const std::size_t before = in.payload_read();
          has_moved |= stream.pull(in, staging_.data() + tail, staging_.size() - tail) > 0;
          tail += in.payload_read() - before;
        }
        const std::size_t count = std::min(tail - head, out.payload_written() - added) / sizeof(T);
        add_to(x + added / sizeof(T), staging_.data() + head, count);
        added += count * sizeof(T), head += count * sizeof(T);
        if (tail == staging_.size()) {
          std::memmove(staging_.data(), staging_.data() + head, tail - head);
          tail -= head, head = 0;
        }
        if (has_moved) {
          vigil.note_progress();
        } else {
          vigil.look_away([&] { return pending(stream, !in.is_done() && tail < staging_.size(), !out.is_done()); });
        }
      }
    });
    traffic_.exchanged(1 - rank(), n * sizeof(T), n * sizeof(T));
  }

  template <class T>
  void sum_whole(T* x, std::size_t n) {
    std::vector<T> addends(n * size());
    std::vector<Flow> flows = both_ways();
    for (std::size_t r = 0; r < size(); ++r)
      flows[r] = {bytes_of(x), n * sizeof(T), bytes_of(addends.data() + r * n), n * sizeof(T)};
    exchange(all_reduce_of<T>(), flows);
    add_in_rank_order(x, n, addends);
  }

  // Reduce-scatter, then all-gather: rank r adds part r.
  template <class T>
  void sum_parts(T* x, std::size_t n) {
    const auto start = [&](std::size_t r) { return n * r / size(); };
    const auto part_bytes = [&](std::size_t r) { return (start(r + 1) - start(r)) * sizeof(T); };
    T* mine = x + start(rank());
    const std::size_t count = start(rank() + 1) - start(rank());
    std::vector<T> addends(count * size());
    std::vector<Flow> flows = both_ways();
    for (std::size_t r = 0; r < size(); ++r)
      flows[r] = {bytes_of(x + start(r)), part_bytes(r), bytes_of(addends.data() + r * count), count * sizeof(T)};
    exchange(all_reduce_of<T>(), flows);
    add_in_rank_order(mine, count, addends);
    for (std::size_t r = 0; r < size(); ++r)
      flows[r] = {bytes_of(mine), count * sizeof(T), bytes_of(x + start(r)), part_bytes(r)};
    exchange(all_reduce_of<T>(), flows);
  }

  // x (n,), this rank's addend, becomes the sum; addends (size, n) holds those of the others.
  template <class T>
  void add_in_rank_order(T* x, std::size_t n, std::vector<T>& addends) const {
    std::memcpy(addends.data() + rank() * n, x, n * sizeof(T));
    std::memcpy(x, addends.data(), n * sizeof(T));
    for (std::size_t r = 1; r < size(); ++r) add_to(x, addends.data() + r * n, n);
  }

  template <class T>
  static std::byte* bytes_of(T* x) {
    return reinterpret_cast<std::byte*>(x);
  }

  Watch watch_;
  std::vector<std::byte> staging_, addends_;
  std::vector<std::unique_ptr<TcpStream>> streams_;
  Traffic traffic_;
};

}  // namespace tinycluster
