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
struct Crew {
  explicit Crew(int size) : size(size), taken(ROUNDS * size) {}

  // How many of the pieces that thread `owner` begins with have been taken in one meeting.
  std::atomic<int64_t>& taken_of(uint32_t meeting, int owner) { return taken[meeting % ROUNDS * size + owner].count; }

  struct alignas(64) Counter {
    std::atomic<int64_t> count{0};
  };
  static constexpr int ROUNDS = 4;
  const int size;
  std::vector<Counter> taken;
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> meetings{0};
};

// One thread's place in the crew. All threads of a job make the same calls in the same order.
class Team {
 public:
  Team(Crew& crew, int index) : crew_(crew), index_(index), meeting_(crew.meetings.load()) {}

  int index() const { return index_; }
  int size() const { return crew_.size; }

  // Calls body(begin, end) until [0, count) is covered in pieces of `piece`, and waits until all are done. Every thread
  // begins with a stretch of its own, one piece after the other, and then helps the others.
  template <class Body>
  void share(int64_t count, int64_t piece, const Body& body) {
    if (crew_.size == 1 || count <= piece) {
      if (index_ == 0 && count > 0) body(int64_t(0), count);
      return barrier();
    }
    const int64_t pieces = (count + piece - 1) / piece;
    for (int i = 0; i < crew_.size; ++i) {
      const int owner = (index_ + i) % crew_.size;
      const int64_t first = pieces * owner / crew_.size, last = pieces * (owner + 1) / crew_.size;
      std::atomic<int64_t>& taken = crew_.taken_of(meeting_, owner);
      for (int64_t p; (p = first + taken.fetch_add(1, std::memory_order_relaxed)) < last;)
        body(p * piece, p + 1 < pieces ? (p + 1) * piece : count);
    }
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
  // num_threads counts the calling thread, which always takes part. Of cores, if there are some, each worker is bound
  // to its own, the first being left to the calling thread: a worker that is woken while another thread is at work
  // would else be put on the caller's core, and both would share it for as long as the system does not look.
  Pool(int num_threads, const std::vector<int>& cores);
  ~Pool();
  Pool(const Pool&) = delete;

  int num_threads() const { return crew_.size; }

  // Every thread calls job(team) once; returns when all have. One caller at a time; the job must not throw.
  void run(const std::function<void(Team&)>& job);

 private:
  void work(int index);
  static void bind_this_thread(int core);

  Crew crew_;
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> round_{0};  // one per run; workers wait for it to change
  std::atomic<int> sleepers_{0};
  std::atomic<int> busy_{0};  // workers that have not finished this round
  const std::function<void(Team&)>* job_ = nullptr;
  bool stop_ = false;
};

}  // namespace tinycluster
