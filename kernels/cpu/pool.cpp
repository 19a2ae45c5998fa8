#include "pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

namespace tinycluster {

namespace {

// Steps follow each other within a fraction of a millisecond while there is work, and a core that has gone to sleep
// needs as long to wake up, above all in a virtual machine. Whoever else wants the core has it at the next yield.
constexpr std::chrono::microseconds SPIN{1000};
constexpr int SPINS_BETWEEN_LOOKS = 64;
// Inside a job the others come within microseconds, unless their core was taken away.
constexpr int SPINS_BEFORE_YIELD = 4000;

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

template <class Ready>
bool spun(const Ready& ready, int spins) {
  for (int i = 0; i < spins && !ready(); ++i) relax();
  return ready();
}

template <class Ready>
void spin_until(Ready ready) {
  for (int spin = 0; !ready(); ++spin) spin < SPINS_BEFORE_YIELD ? relax() : std::this_thread::yield();
}

}  // namespace

void Team::barrier() {
  if (crew_.size == 1) return;
  const uint32_t meeting = meeting_++;
  if (crew_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == crew_.size) {
    // Nobody uses the counters of the meeting after next before this one ends.
    for (int owner = 0; owner < crew_.size; ++owner)
      crew_.taken_of(meeting + 2, owner).store(0, std::memory_order_relaxed);
    crew_.arrived.store(0, std::memory_order_relaxed);
    crew_.meetings.store(meeting + 1, std::memory_order_release);
  } else {
    spin_until([&] { return crew_.meetings.load(std::memory_order_acquire) != meeting; });
  }
}

Pool::Pool(int num_threads, const std::vector<int>& cores) : crew_(num_threads) {
  for (int i = 1; i < num_threads; ++i) {
    const int core = size_t(i) < cores.size() ? cores[size_t(i)] : -1;
    workers_.emplace_back([this, i, core] {
      if (core >= 0) bind_this_thread(core);
      work(i);
    });
  }
}

// Where the system refuses, nothing is lost but speed.
void Pool::bind_this_thread(int core) {
  if (core >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);
}

Pool::~Pool() {
  stop_ = true;
  round_.fetch_add(1);
  futex(round_, FUTEX_WAKE, INT_MAX);
  for (auto& worker : workers_) worker.join();
}

void Pool::work(int index) {
  uint32_t seen = 0;
  const auto has_changed = [&] { return round_.load() != seen; };
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + SPIN;
    while (!has_changed() && std::chrono::steady_clock::now() < until)
      if (!spun(has_changed, SPINS_BETWEEN_LOOKS)) std::this_thread::yield();
    sleepers_.fetch_add(1);
    while (!has_changed()) futex(round_, FUTEX_WAIT, seen);
    sleepers_.fetch_sub(1);
    ++seen;
    if (stop_) return;
    Team team(crew_, index);
    (*job_)(team);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::run(const std::function<void(Team&)>& job) {
  Team team(crew_, 0);
  if (workers_.empty()) return job(team);
  job_ = &job;
  busy_.store(int(workers_.size()));
  round_.fetch_add(1);
  if (sleepers_.load() > 0) futex(round_, FUTEX_WAKE, INT_MAX);
  job(team);
  spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
}

}  // namespace tinycluster
