// What Python sees of a group of any kind. Every wait and copy releases the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "tabled.h"

namespace tinycluster {

namespace nb = nanobind;

template <class Group>
class Bound {
 public:
  template <class T>
  using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
  using AnyArray = nb::ndarray<nb::c_contig, nb::device::cpu>;
  using ConstAnyArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

  Group& group() { return *group_; }
  CollectiveTable& table() { return tabled_->table(); }
  std::size_t rank() const { return group_->rank(); }
  std::size_t size() const { return group_->size(); }

  void barrier() {
    unlocked([](Group& group) { group.barrier(); });
  }
  void close() {
    unlocked([](Group& group) { group.close(); });
  }
  void abort(const std::string& reason) {
    unlocked([&](Group& group) { group.abort(reason); });
  }

  template <class T>
  void all_reduce(Array<T> x) {
    unlocked([&](Group& group) { group.all_reduce(x.data(), x.size()); });
  }

  void reduce_scatter(Array<std::int64_t> x, const std::vector<std::size_t>& counts) {
    std::size_t total = 0;
    for (const std::size_t count : counts) total += count;
    if (counts.size() != size() || total != x.size())
      throw nb::value_error("the counts of reduce_scatter must name every rank and add up to x");
    unlocked([&](Group& group) { group.reduce_scatter(x.data(), counts.data()); });
  }

  void all_gather(ConstAnyArray x, const std::vector<std::size_t>& bytes, AnyArray out) {
    std::size_t total = 0;
    for (const std::size_t b : bytes) total += b;
    if (bytes.size() != size() || bytes[rank()] != x.nbytes() || total != out.nbytes())
      throw nb::value_error("the counts of all_gather must name every rank and add up to the output");
    unlocked([&](Group& group) { group.all_gather(bytes_of(x), bytes.data(), bytes_of(out)); });
  }

  void all_to_all(ConstAnyArray x, const std::vector<std::size_t>& bytes, AnyArray out) {
    std::size_t sent = 0, received = 0;
    const bool is_square = bytes.size() == size() * size();
    for (std::size_t r = 0; is_square && r < size(); ++r)
      sent += bytes[rank() * size() + r], received += bytes[r * size() + rank()];
    if (!is_square || sent != x.nbytes() || received != out.nbytes())
      throw nb::value_error("the counts of all_to_all must name every pair of ranks and add up to x and to the output");
    unlocked([&](Group& group) { group.all_to_all(bytes_of(x), bytes.data(), bytes_of(out)); });
  }

  void broadcast(AnyArray x, std::size_t root) {
    check_rank(root);
    unlocked([&](Group& group) { group.broadcast(bytes_of(x), x.nbytes(), root); });
  }

  void send(ConstAnyArray x, std::size_t to) {
    check_rank(to);
    unlocked([&](Group& group) { group.send(bytes_of(x), x.nbytes(), to); });
  }

  void recv(AnyArray x, std::size_t source) {
    check_rank(source);
    unlocked([&](Group& group) { group.recv(bytes_of(x), x.nbytes(), source); });
  }

  template <class Class>
  static void define(Class& bound) {
    using nb::literals::operator""_a;
    using Self = typename Class::Type;
    bound.def_prop_ro("rank", [](Self& self) { return self.rank(); })
        .def_prop_ro("size", [](Self& self) { return self.size(); })
        .def("native_table", &capsule<Self>)
        .def("traffic", [](Self& self) { return self.group().traffic(); })
        .def(
            "all_reduce", [](Self& self, Array<std::int64_t> x) { self.all_reduce(x); }, "x"_a.noconvert())
        .def(
            "all_reduce", [](Self& self, Array<float> x) { self.all_reduce(x); }, "x"_a.noconvert())
        .def("reduce_scatter", &Self::reduce_scatter, "x"_a.noconvert(), "counts"_a)
        .def("all_gather", &Self::all_gather, "x"_a.noconvert(), "bytes"_a, "out"_a.noconvert())
        .def("all_to_all", &Self::all_to_all, "x"_a.noconvert(), "bytes"_a, "out"_a.noconvert())
        .def("broadcast", &Self::broadcast, "x"_a.noconvert(), "root"_a)
        .def("send", &Self::send, "x"_a.noconvert(), "to"_a)
        .def("recv", &Self::recv, "x"_a.noconvert(), "source"_a)
        .def("barrier", &Self::barrier)
        .def("abort", &Self::abort, "reason"_a)
        .def("close", &Self::close);
  }

 protected:
  void own(std::unique_ptr<Group> group) {
    group_ = std::move(group);
    tabled_ = std::make_unique<Tabled<Group>>(*group_);
  }

  template <class Work>
  void unlocked(Work work) {
    nb::gil_scoped_release release;
    work(*group_);
  }

 private:
  // The capsule holds a reference to the Python object of the group whose table it carries.
  template <class Self>
  static nb::object capsule(nb::handle_t<Self> self) {
    const auto drop = [](PyObject* capsule) { Py_DECREF(static_cast<PyObject*>(PyCapsule_GetContext(capsule))); };
    PyObject* capsule = PyCapsule_New(&nb::cast<Self&>(self).table(), kCollectiveTableName, drop);
    if (capsule == nullptr || PyCapsule_SetContext(capsule, self.inc_ref().ptr()) != 0) throw nb::python_error();
    return nb::steal(capsule);
  }

  static std::byte* bytes_of(const AnyArray& x) { return static_cast<std::byte*>(x.data()); }
  static const std::byte* bytes_of(const ConstAnyArray& x) { return static_cast<const std::byte*>(x.data()); }

  void check_rank(std::size_t rank) const {
    if (rank >= size()) throw nb::value_error("the other rank must be smaller than size");
  }

  std::unique_ptr<Group> group_;
  std::unique_ptr<Tabled<Group>> tabled_;
};

}  // namespace tinycluster
