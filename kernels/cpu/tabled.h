// Any group as a CollectiveTable: exceptions become false and a sentence that can be asked for.
#pragma once

#include <exception>
#include <mutex>
#include <string>

#include "collective_table.h"

namespace tinycluster {

// `Group` has the calls of group.h. It must outlive this object, which must stay where it is.
template <class Group>
class Tabled {
 public:
  explicit Tabled(Group& group) : group_(group) {
    table_.group = this;
    table_.rank = group.rank(), table_.size = group.size();
    table_.is_in_memory = Group::kIsInMemory;
    table_.all_reduce_i64 = [](void* self, std::int64_t* x, std::size_t n) {
      return of(self).kept([&](Group& group) { group.all_reduce(x, n); });
    };
    table_.all_reduce_f32 = [](void* self, float* x, std::size_t n) {
      return of(self).kept([&](Group& group) { group.all_reduce(x, n); });
    };
    table_.reduce_scatter_i64 = [](void* self, std::int64_t* x, const std::size_t* counts) {
      return of(self).kept([&](Group& group) { group.reduce_scatter(x, counts); });
    };
    table_.all_gather = [](void* self, const void* x, const std::size_t* bytes, void* out) {
      return of(self).kept([&](Group& group) {
        group.all_gather(static_cast<const std::byte*>(x), bytes, static_cast<std::byte*>(out));
      });
    };
    table_.all_to_all = [](void* self, const void* x, const std::size_t* bytes, void* out) {
      return of(self).kept([&](Group& group) {
        group.all_to_all(static_cast<const std::byte*>(x), bytes, static_cast<std::byte*>(out));
      });
    };
    table_.broadcast = [](void* self, void* x, std::size_t bytes, std::size_t root) {
      return of(self).kept([&](Group& group) { group.broadcast(static_cast<std::byte*>(x), bytes, root); });
    };
    table_.send = [](void* self, const void* x, std::size_t bytes, std::size_t to) {
      return of(self).kept([&](Group& group) { group.send(static_cast<const std::byte*>(x), bytes, to); });
    };
    table_.recv = [](void* self, void* x, std::size_t bytes, std::size_t source) {
      return of(self).kept([&](Group& group) { group.recv(static_cast<std::byte*>(x), bytes, source); });
    };
    table_.error = [](void* self) { return of(self).error_.c_str(); };
    table_.waited_ns = [](void* self) { return of(self).group_.waited_ns(); };
  }
  Tabled(const Tabled&) = delete;
  Tabled& operator=(const Tabled&) = delete;

  CollectiveTable& table() { return table_; }

 private:
  static Tabled& of(void* self) { return *static_cast<Tabled*>(self); }

  template <class Work>
  bool kept(Work work) noexcept {
    try {
      work(group_);
      return true;
    } catch (const std::exception& error) {
      // Written once, so that whoever was given its address may go on reading while another call fails.
      std::call_once(failed_, [&] { error_ = error.what(); });
      return false;
    }
  }

  Group& group_;
  CollectiveTable table_{};
  std::once_flag failed_;
  std::string error_;
};

}  // namespace tinycluster
