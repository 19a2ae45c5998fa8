// A pool of threads that share the pieces of one operation at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tinycluster {

class Pool {
 public:
  // num_threads counts the calling thread, which always takes part.
  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;

  int num_threads() const { return int(workers_.size()) + 1; }

  // Calls body(begin, end) until [0, count) is covered in pieces of `piece`, on all threads, and waits for the end.
  // One caller at a time; body must not throw.
  void run(int64_t count, int64_t piece, const std::function<void(int64_t, int64_t)>& body);

 private:
  void work();
  void take_pieces();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};  // one per run; workers wait for it to change
  std::atomic<int> busy_{0};        // workers that have not finished this round
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0, piece_ = 1;
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  bool stop_ = false;
};

}  // namespace tinycluster
