// Threads that run one job together and share its pieces.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tinycluster {

inline void relax() {
#ifdef TINYCLUSTER_X86
  __builtin_ia32_pause();
#endif
}

// What the threads of one pool have in common while they run a job.
struct alignas(64) Crew {
  static constexpr int COUNTERS = 4;
  int size = 1;
  alignas(64) std::atomic<int64_t> next[COUNTERS] = {};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> meetings{0};
};

// One thread's place in the crew. All threads of a job make the same calls in the same order.
class Team {
 public:
  Team(Crew& crew, int index) : crew_(crew), index_(index), meeting_(crew.meetings.load()) {}

  int index() const { return index_; }
  int size() const { return crew_.size; }

  // Calls body(begin, end) until [0, count) is covered in pieces of `piece`, whoever is free taking the next one, and
  // waits until all are done.
  template <class Body>
  void share(int64_t count, int64_t piece, const Body& body) {
    if (crew_.size == 1) {
      if (count > 0) body(int64_t(0), count);
      return;
    }
    if (count <= piece) {
      if (index_ == 0 && count > 0) body(int64_t(0), count);
      return barrier();
    }
    std::atomic<int64_t>& next = crew_.next[meeting_ % Crew::COUNTERS];
    for (int64_t begin; (begin = next.fetch_add(piece, std::memory_order_relaxed)) < count;)
      body(begin, begin + piece < count ? begin + piece : count);
    barrier();
  }

  // What was written before it, by any thread, is seen after it by all.
  void barrier();

 private:
  Crew& crew_;
  int index_;
  uint32_t meeting_;
};

class Pool {
 public:
  // num_threads counts the calling thread, which always takes part.
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;

  int num_threads() const { return crew_.size; }

  // Every thread calls job(team) once; returns when all have. One caller at a time; the job must not throw.
  void run(const std::function<void(Team&)>& job);

 private:
  void work(int index);

  Crew crew_;
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> round_{0};  // one per run; workers wait for it to change
  std::atomic<int> sleepers_{0};
  std::atomic<int> busy_{0};  // workers that have not finished this round
  const std::function<void(Team&)>* job_ = nullptr;
  bool stop_ = false;
};

}  // namespace tinycluster
