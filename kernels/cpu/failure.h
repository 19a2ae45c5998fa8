// Why a group broke. The first reason stays; every later call reports it.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "call.h"

namespace tinycluster {

class Failure {
 public:
  void set(const std::string& reason) {
    std::lock_guard lock(mutex_);
    if (is_set()) return;
    reason_ = reason;
    is_set_.store(true, std::memory_order_release);
  }

  bool is_set() const { return is_set_.load(std::memory_order_acquire); }

  void check() const {
    if (is_set()) raise();
  }

  // Throws the reason, which must have been set.
  [[noreturn]] void raise() const { throw GroupError(reason_); }

 private:
  std::mutex mutex_;
  std::atomic<bool> is_set_{false};
  std::string reason_;  // not written any more once is_set_
};

}  // namespace tinycluster
