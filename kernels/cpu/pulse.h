// Whether another process still lives, told by the kernel: each rank holds a lock on byte `rank` of the group's file.
#pragma once

#include <fcntl.h>

#include <cstddef>

namespace tinycluster {

// The lock belongs to the open file description (fcntl F_OFD_SETLK), so it goes with the process however that ended,
// and threads of one process may each hold their own. Without a file, or where such locks are missing, nobody is ever
// found dead and only deadlines tell.
class Pulse {
 public:
  // `fd` was opened by this rank alone, or is -1.
  Pulse(int fd, std::size_t rank) : fd_(fd) {
    struct flock lock = byte_of(rank);
    if (fd_ >= 0 && fcntl(fd_, F_OFD_SETLK, &lock) != 0) fd_ = -1;
  }

  // Only for ranks that are known to have taken their lock.
  bool has_stopped(std::size_t rank) const {
    struct flock lock = byte_of(rank);
    return fd_ >= 0 && fcntl(fd_, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
  }

 private:
  static struct flock byte_of(std::size_t rank) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(rank);
    lock.l_len = 1;
    return lock;
  }

  int fd_;
};

}  // namespace tinycluster
