// Python faces of attention and of the paged cache that it reads.
#include "attention.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "cpu.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

KVFormat format_of(const std::string& dtype) {
  const char* names[] = {"f32", "bf16", "q8"};
  for (int i = 0; i < 3; ++i)
    if (dtype == names[i]) return KVFormat(i);
  throw nb::value_error("dtype must be f32, bf16 or q8");
}

void make_cache(KVCacheHandle* self, Array<uint8_t, 4> keys, Array<uint8_t, 4> values, int64_t head_dim,
                int64_t block_tokens, const std::string& dtype) {
  const int64_t num_blocks = keys.shape(0), KV = keys.shape(1);
  KVCache cache = {format_of(dtype), keys.data(), values.data(), num_blocks, KV, head_dim, block_tokens};
  require(block_tokens >= KV_TILE && (block_tokens & (block_tokens - 1)) == 0,
          "block_tokens must be a power of two of at least 16");
  require(head_dim >= 1 && head_dim <= 256, "head_dim must be from 1 to 256");
  const int64_t tiles = block_tokens / KV_TILE;
  require(int64_t(keys.shape(2)) == tiles && int64_t(keys.shape(3)) == cache.key_tile_bytes(),
          "keys must be (blocks, KV heads, tiles, bytes of a tile of keys)");
  require(int64_t(values.shape(0)) == num_blocks && int64_t(values.shape(1)) == KV &&
              int64_t(values.shape(2)) == tiles && int64_t(values.shape(3)) == cache.value_tile_bytes(),
          "values must be (blocks, KV heads, tiles, bytes of a tile of values)");
  new (self) KVCacheHandle{cache, nb::cast(keys), nb::cast(values)};
}

KVStep step_of(const KVCache& cache, size_t T, const Array<const int32_t, 1>& positions,
               const Array<const int32_t, 1>& row_start, const Array<const int32_t, 2>& block_tables) {
  require(positions.shape(0) == T && row_start.shape(0) == block_tables.shape(0) + 1, "row_start must be (R + 1,)");
  const KVStep step = {positions.data(),
                       row_start.data(),
                       block_tables.data(),
                       int64_t(T),
                       int64_t(block_tables.shape(0)),
                       int64_t(block_tables.shape(1))};
  const char* rule = broken_rule(step, cache);
  require(rule == nullptr, rule);
  return step;
}

void write_kv(Cpu& cpu, Array<const float, 2> k, Array<const float, 2> v, const KVCacheHandle& handle,
              Array<const int32_t, 1> positions, Array<const int32_t, 1> row_start,
              Array<const int32_t, 2> block_tables) {
  const int64_t width = handle.cache.KV * handle.cache.C;
  require(int64_t(k.shape(1)) == width && int64_t(v.shape(1)) == width && k.shape(0) == v.shape(0),
          "k and v must be (T, KV heads * head_dim)");
  const KVStep step = step_of(handle.cache, k.shape(0), positions, row_start, block_tables);
  const KVWriteArgs args = {&handle.cache, &step, k.data(), v.data()};
  cpu.share(step.T, 16, [&](int64_t begin, int64_t end) { cpu.kernels->write_kv(args, begin, end); });
}

void attention(Cpu& cpu, Array<const float, 2> q, const KVCacheHandle& handle, Array<const int32_t, 1> positions,
               Array<const int32_t, 1> row_start, Array<const int32_t, 2> block_tables,
               const std::vector<int32_t>& kv_head_of_head, float scale, int64_t window, Array<float, 2> out) {
  const int64_t H = int64_t(kv_head_of_head.size());
  require(int64_t(q.shape(1)) == H * handle.cache.C && q.shape(0) == out.shape(0) && q.size() == out.size(),
          "q and out must be (T, heads * head_dim)");
  for (const int32_t kv_head : kv_head_of_head)
    require(kv_head >= 0 && kv_head < handle.cache.KV, "kv_head_of_head names a head that does not exist");
  const KVStep step = step_of(handle.cache, q.shape(0), positions, row_start, block_tables);
  const AttentionArgs args = {&handle.cache, &step, q.data(), H, window > 0 ? window : NO_WINDOW, scale, out.data()};
  AttentionTasks tasks(head_groups(kv_head_of_head.data(), H), handle.cache.padded_C(), args.window);
  tasks.deal(step, cpu.pool.num_threads());
  cpu.share(tasks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) cpu.kernels->attention(args, tasks[i]);
  });
}

}  // namespace

void bind_attention(nb::module_& m, nb::class_<Cpu>& cpu) {
  nb::class_<KVCacheHandle>(m, "KVCache")
      .def("__init__", &make_cache, "keys"_a, "values"_a, "head_dim"_a, "block_tokens"_a, "dtype"_a);
  cpu.def("write_kv", &write_kv, "k"_a, "v"_a, "cache"_a, "positions"_a, "row_start"_a, "block_tables"_a)
      .def("attention", &attention, "q"_a, "cache"_a, "positions"_a, "row_start"_a, "block_tables"_a,
           "kv_head_of_head"_a, "scale"_a, "window"_a, "out"_a);
}

}  // namespace tinycluster
