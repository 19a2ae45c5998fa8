#include "pool.h"

#ifdef TINYCLUSTER_X86
#include <immintrin.h>
#endif

namespace tinycluster {

namespace {

// Operations follow each other within microseconds during a step, so a short spin saves a system call per operation;
// longer would starve the other ranks of a shared machine.
constexpr int SPINS = 2000;

inline void pause() {
#ifdef TINYCLUSTER_X86
  _mm_pause();
#endif
}

}  // namespace

Pool::Pool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::take_pieces() {
  for (;;) {
    const int64_t begin = next_.fetch_add(piece_);
    if (begin >= count_) return;
    const int64_t end = begin + piece_ < count_ ? begin + piece_ : count_;
    (*body_)(begin, end);
  }
}

void Pool::work() {
  uint64_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < SPINS && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
    if (round_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_) return;
    take_pieces();
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::run(int64_t count, int64_t piece, const std::function<void(int64_t, int64_t)>& body) {
  if (workers_.empty() || count <= piece) {
    if (count > 0) body(0, count);
    return;
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    count_ = count;
    piece_ = piece;
    body_ = &body;
    next_.store(0);
    busy_.store(int(workers_.size()));
    round_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  take_pieces();
  for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; ++spin)
    spin < SPINS ? pause() : std::this_thread::yield();
}

}  // namespace tinycluster
