// Python bindings of the collectives over shared memory: threads of one process and processes of one node.
#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "group.h"
#include "tabled.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tinycluster {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using AnyArray = nb::ndarray<nb::c_contig, nb::device::cpu>;
using ConstAnyArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

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
    const Region region(static_cast<std::byte*>(view_.buf), size, slot_bytes, mailbox_bytes);
    if (static_cast<std::size_t>(view_.len) < region.total_bytes())
      throw nb::value_error("the memory is smaller than region_bytes()");
    return region;
  }

 private:
  Py_buffer view_{};
};

// One rank of a group. Every wait and copy releases the GIL.
class BoundGroup {
 public:
  BoundGroup(nb::handle memory, std::size_t size, std::size_t rank, std::size_t slot_bytes, std::size_t mailbox_bytes,
             std::uint64_t epoch, double timeout_s, double spin_us, int fd)
      : memory_(memory), fd_(fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0)) {
    const Region region = memory_.region(size, slot_bytes, mailbox_bytes);
    if (const char* problem = region.mismatch(epoch))
      throw GroupError(std::string("the shared memory belongs to another group: ") + problem);
    if (rank >= size) throw nb::value_error("rank must be smaller than size");
    group_ = std::make_unique<Group>(region, rank, timeout_s, spin_us, fd_.value);
    tabled_ = std::make_unique<Tabled<Group>>(*group_);
  }

  std::size_t rank() const { return group_->rank(); }
  std::size_t size() const { return group_->size(); }

  CollectiveTable& table() { return tabled_->table(); }

  void attach() {
    unlocked([&] { group_->attach(); });
  }
  void barrier() {
    unlocked([&] { group_->barrier(); });
  }
  void close() {
    unlocked([&] { group_->close(); });
  }
  void abort(const std::string& reason) {
    unlocked([&] { group_->abort(reason); });
  }

  template <class T>
  void all_reduce(Array<T> x) {
    unlocked([&] { group_->all_reduce(x.data(), x.size()); });
  }

  void all_gather(ConstAnyArray x, const std::vector<std::size_t>& bytes, AnyArray out) {
    std::size_t total = 0;
    for (const std::size_t b : bytes) total += b;
    if (bytes.size() != size() || bytes[rank()] != x.nbytes() || total != out.nbytes())
      throw nb::value_error("the counts of all_gather must name every rank and add up to the output");
    unlocked([&] { group_->all_gather(bytes_of(x), bytes.data(), bytes_of(out)); });
  }

  void broadcast(AnyArray x, std::size_t root) {
    check_peer(root);
    unlocked([&] { group_->broadcast(bytes_of(x), x.nbytes(), root); });
  }

  void send(ConstAnyArray x, std::size_t to) {
    check_peer(to);
    unlocked([&] { group_->send(bytes_of(x), x.nbytes(), to); });
  }

  void recv(AnyArray x, std::size_t source) {
    check_peer(source);
    unlocked([&] { group_->recv(bytes_of(x), x.nbytes(), source); });
  }

 private:
  struct OwnedFd {
    explicit OwnedFd(int value) : value(value) {}
    ~OwnedFd() {
      if (value >= 0) ::close(value);
    }
    int value;
  };

  static std::byte* bytes_of(const AnyArray& x) { return static_cast<std::byte*>(x.data()); }
  static const std::byte* bytes_of(const ConstAnyArray& x) { return static_cast<const std::byte*>(x.data()); }

  void check_peer(std::size_t peer) const {
    if (peer >= size()) throw nb::value_error("the other rank must be smaller than size");
  }

  template <class Work>
  static void unlocked(Work work) {
    nb::gil_scoped_release release;
    work();
  }

  HeldBuffer memory_;
  OwnedFd fd_;
  std::unique_ptr<Group> group_;
  std::unique_ptr<Tabled<Group>> tabled_;
};

// The capsule holds a reference to the Python object of the group whose table it carries.
nb::object table_capsule(nb::handle_t<BoundGroup> self) {
  const auto drop = [](PyObject* capsule) { Py_DECREF(static_cast<PyObject*>(PyCapsule_GetContext(capsule))); };
  PyObject* capsule = PyCapsule_New(&nb::cast<BoundGroup&>(self).table(), kCollectiveTableName, drop);
  if (capsule == nullptr || PyCapsule_SetContext(capsule, self.inc_ref().ptr()) != 0) throw nb::python_error();
  return nb::steal(capsule);
}

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
  using tinycluster::BoundGroup;
  m.doc() = "Collectives over shared memory, between threads or between processes of one node.";
  nb::exception<tinycluster::GroupError>(m, "GroupError", PyExc_RuntimeError);
  m.def("region_bytes", &tinycluster::region_bytes, "size"_a, "slot_bytes"_a, "mailbox_bytes"_a);
  m.def("format_region", &tinycluster::format_region, "memory"_a, "size"_a, "slot_bytes"_a, "mailbox_bytes"_a,
        "epoch"_a);
  nb::class_<BoundGroup>(m, "Group")
      .def(nb::init<nb::handle, std::size_t, std::size_t, std::size_t, std::size_t, std::uint64_t, double, double,
                    int>(),
           "memory"_a, "size"_a, "rank"_a, "slot_bytes"_a, "mailbox_bytes"_a, "epoch"_a, "timeout_s"_a, "spin_us"_a,
           "fd"_a)
      .def_prop_ro("rank", &BoundGroup::rank)
      .def_prop_ro("size", &BoundGroup::size)
      .def("native_table", &tinycluster::table_capsule)
      .def("attach", &BoundGroup::attach)
      .def("all_reduce", &BoundGroup::all_reduce<std::int64_t>, "x"_a.noconvert())
      .def("all_reduce", &BoundGroup::all_reduce<float>, "x"_a.noconvert())
      .def("all_gather", &BoundGroup::all_gather, "x"_a.noconvert(), "bytes"_a, "out"_a.noconvert())
      .def("broadcast", &BoundGroup::broadcast, "x"_a.noconvert(), "root"_a)
      .def("send", &BoundGroup::send, "x"_a.noconvert(), "to"_a)
      .def("recv", &BoundGroup::recv, "x"_a.noconvert(), "source"_a)
      .def("barrier", &BoundGroup::barrier)
      .def("abort", &BoundGroup::abort, "reason"_a)
      .def("close", &BoundGroup::close);
}
