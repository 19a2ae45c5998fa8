// Python bindings of the collectives: over shared memory, over TCP, and over nodes.
#include <fcntl.h>
#include <unistd.h>

#include "bound.h"
#include "group.h"
#include "tcp_group.h"
#include "tiered_group.h"

namespace tinycluster {
namespace {

// Holds a writable buffer of Python, so that its memory outlives whoever still waits in it.
class HeldBuffer {
 public:
  explicit HeldBuffer(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_WRITABLE) != 0) throw nb::python_error();
  }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;
  ~HeldBuffer() { PyBuffer_Release(&view_); }

  // The region of this shape in the buffer, which must be large enough for it.
  Region region(std::size_t size, std::size_t slot_bytes, std::size_t mailbox_bytes) const {
    if (size == 0 || slot_bytes == 0 || mailbox_bytes == 0)
      throw nb::value_error("size, slot_bytes and mailbox_bytes must be positive");
    // What is for one rank alone goes through its share of a slot; an empty one would never be through.
    if (slot_bytes < size * sizeof(std::int64_t)) throw nb::value_error("slot_bytes must hold a number for every rank");
    const Region region(static_cast<std::byte*>(view_.buf), size, slot_bytes, mailbox_bytes);
    if (static_cast<std::size_t>(view_.len) < region.total_bytes())
      throw nb::value_error("the memory is smaller than region_bytes()");
    return region;
  }

 private:
  Py_buffer view_{};
};

struct OwnedFd {
  explicit OwnedFd(int value) : value(value) {}
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() {
    if (value >= 0) ::close(value);
  }
  int value;
};

void check_is_in(std::size_t size, std::size_t rank) {
  if (rank >= size) throw nb::value_error("rank must be smaller than size");
}

// The members that a group uses are bases, so that they outlive it.
struct RegionResources {
  HeldBuffer memory;
  OwnedFd fd;
};

class BoundRegionGroup : RegionResources, public Bound<Group> {
 public:
  BoundRegionGroup(nb::handle memory, std::size_t size, std::size_t rank, std::size_t slot_bytes,
                   std::size_t mailbox_bytes, std::uint64_t epoch, double timeout_s, double spin_us, int fd)
      : RegionResources{HeldBuffer(memory), OwnedFd(fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0))} {
    const Region region = this->memory.region(size, slot_bytes, mailbox_bytes);
    if (const char* problem = region.mismatch(epoch))
      throw GroupError(std::string("the shared memory belongs to another group: ") + problem);
    check_is_in(size, rank);
    own(std::make_unique<Group>(region, rank, timeout_s, spin_us, this->fd.value));
  }

  void attach() {
    unlocked([](Group& group) { group.attach(); });
  }
};

class BoundTcpGroup : public Bound<TcpGroup> {
 public:
  BoundTcpGroup(const std::vector<int>& fds, std::size_t rank, std::uint64_t epoch, double timeout_s, double spin_us) {
    check_is_in(fds.size(), rank);
    own(std::make_unique<TcpGroup>(fds, rank, epoch, timeout_s, spin_us));
  }
};

class BoundTieredGroup : public Bound<TieredGroup> {
 public:
  BoundTieredGroup(std::size_t rank, std::vector<std::vector<std::size_t>> nodes, BoundRegionGroup& node,
                   BoundTcpGroup* leaders) {
    own(std::make_unique<TieredGroup>(rank, std::move(nodes), node.group(), leaders ? &leaders->group() : nullptr));
  }
};

std::size_t region_bytes(std::size_t size, std::size_t slot_bytes, std::size_t mailbox_bytes) {
  return Region(nullptr, size, slot_bytes, mailbox_bytes).total_bytes();
}

void format_region(nb::handle memory, std::size_t size, std::size_t slot_bytes, std::size_t mailbox_bytes,
                   std::uint64_t epoch) {
  HeldBuffer(memory).region(size, slot_bytes, mailbox_bytes).format(epoch);
}

}  // namespace
}  // namespace tinycluster

NB_MODULE(_collectives, m) {
  using namespace tinycluster;
  using namespace nb::literals;
  m.doc() = "Collectives between threads, between processes of one node, and between nodes.";
  nb::exception<GroupError>(m, "GroupError", PyExc_RuntimeError);
  m.def("region_bytes", &region_bytes, "size"_a, "slot_bytes"_a, "mailbox_bytes"_a);
  m.def("format_region", &format_region, "memory"_a, "size"_a, "slot_bytes"_a, "mailbox_bytes"_a, "epoch"_a);
  auto region_group = nb::class_<BoundRegionGroup>(m, "Group")
                          .def(nb::init<nb::handle, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t,
                                        double, double, int>(),
                               "memory"_a, "size"_a, "rank"_a, "slot_bytes"_a, "mailbox_bytes"_a, "epoch"_a,
                               "timeout_s"_a, "spin_us"_a, "fd"_a)
                          .def("attach", &BoundRegionGroup::attach);
  auto tcp_group = nb::class_<BoundTcpGroup>(m, "TcpGroup")
                       .def(nb::init<const std::vector<int>&, std::size_t, std::uint64_t, double, double>(), "fds"_a,
                            "rank"_a, "epoch"_a, "timeout_s"_a, "spin_us"_a);
  auto tiered_group =
      nb::class_<BoundTieredGroup>(m, "TieredGroup")
          .def(nb::init<std::size_t, std::vector<std::vector<std::size_t>>, BoundRegionGroup&, BoundTcpGroup*>(),
               "rank"_a, "nodes"_a, "node"_a, "leaders"_a.none(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>());
  Bound<Group>::define(region_group);
  Bound<TcpGroup>::define(tcp_group);
  Bound<TieredGroup>::define(tiered_group);
}
