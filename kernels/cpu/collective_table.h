// The calls of a communicator as plain functions, so that a plan of the module `_cpu` reaches them without Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tinycluster {

// Name of the PyCapsule that carries a CollectiveTable from one module to another.
constexpr const char* kCollectiveTableName = "tinycluster.collective_table";

// No function throws; false means that the group is broken. parallel/communicator.py states the contract of each call.
struct CollectiveTable {
  void* group;
  std::size_t rank, size;
  bool is_in_memory;  // all ranks are on this machine
  bool (*all_reduce_i64)(void* group, std::int64_t* x, std::size_t n);
  bool (*all_reduce_f32)(void* group, float* x, std::size_t n);
  // x is counts[r] numbers for every rank r, one after the other.
  bool (*reduce_scatter_i64)(void* group, std::int64_t* x, const std::size_t* counts);
  // bytes[r] is the length of rank r's x; out has room for all of them, and x may be its place there.
  bool (*all_gather)(void* group, const void* x, const std::size_t* bytes, void* out);
  // bytes[s * size + r] is what rank s has for rank r. x is this rank's for all of them, out all ranks' for this one.
  bool (*all_to_all)(void* group, const void* x, const std::size_t* bytes, void* out);
  bool (*broadcast)(void* group, void* x, std::size_t bytes, std::size_t root);
  bool (*send)(void* group, const void* x, std::size_t bytes, std::size_t to);
  bool (*recv)(void* group, void* x, std::size_t bytes, std::size_t source);
  const char* (*error)(void* group);       // why the first call failed; every later one fails too
  std::int64_t (*waited_ns)(void* group);  // time spent waiting for peers so far, spinning or asleep
};

}  // namespace tinycluster
