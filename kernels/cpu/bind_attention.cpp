// Python faces of attention and of the paged cache that it reads.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "cpu.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

constexpr int POSITIONS_PER_VECTOR = 16;

template <class KCache, class VCache>
void check_tables(size_t T, const KCache& k_cache, const VCache& v_cache, Array<const int32_t, 1> positions,
                  Array<const int32_t, 1> row_start, Array<const int32_t, 2> tables) {
  const int64_t page = k_cache.shape(3), num_blocks = k_cache.shape(0);
  require(page % POSITIONS_PER_VECTOR == 0, "block_tokens must be a multiple of 16");
  require(v_cache.shape(0) == k_cache.shape(0) && v_cache.shape(1) == k_cache.shape(1) &&
              v_cache.shape(2) == k_cache.shape(3) && v_cache.shape(3) % POSITIONS_PER_VECTOR == 0,
          "v_cache must be (blocks, KV heads, block_tokens, padded head_dim)");
  require(positions.shape(0) == T && row_start.shape(0) == tables.shape(0) + 1, "row_start must be (R + 1,)");
  require(row_start.data()[0] == 0 && size_t(row_start.data()[tables.shape(0)]) == T, "row_start must span T");
  for (size_t r = 0; r < tables.shape(0); ++r) {
    const int64_t begin = row_start.data()[r], end = row_start.data()[r + 1];
    require(begin <= end, "row_start must ascend");
    for (int64_t t = begin; t < end; ++t)
      require(positions.data()[t] == positions.data()[begin] + (t - begin) && positions.data()[t] >= 0,
              "a request's positions must be consecutive");
    const int64_t pages = begin < end ? positions.data()[end - 1] / page + 1 : 0;
    require(pages <= int64_t(tables.shape(1)), "a block table is too short");
    for (int64_t i = 0; i < pages; ++i) {
      const int32_t block = tables.data()[r * tables.shape(1) + i];
      require(block >= 0 && block < num_blocks, "a block table names a block that does not exist");
    }
  }
}

std::vector<AttentionTask> attention_tasks(const AttentionArgs& args, Array<const int32_t, 1> row_start,
                                           const std::vector<int32_t>& kv_head_of_head) {
  std::vector<AttentionTask> tasks;
  for (size_t r = 0; r + 1 < row_start.shape(0); ++r) {
    const int64_t token = row_start.data()[r], tokens = row_start.data()[r + 1] - token;
    for (int64_t head = 0, next; head < args.H; head = next) {
      const int32_t kv_head = kv_head_of_head[head];
      require(kv_head >= 0 && kv_head < args.KV, "kv_head_of_head names a head that does not exist");
      for (next = head; next < args.H && kv_head_of_head[next] == kv_head;) ++next;
      const int64_t items = tokens * (next - head);
      for (int64_t item = 0; item < items; item += ATTENTION_ROWS)
        tasks.push_back(
            {int64_t(r), kv_head, token, head, next - head, item, std::min<int64_t>(ATTENTION_ROWS, items - item)});
    }
  }
  return tasks;
}

void write_kv(Cpu&, Array<const float, 2> k, Array<const float, 2> v, Array<float, 4> k_cache, Array<float, 4> v_cache,
              Array<const int32_t, 1> positions, Array<const int32_t, 1> row_start,
              Array<const int32_t, 2> block_tables) {
  const int64_t KV = k_cache.shape(1), C = k_cache.shape(2), page = k_cache.shape(3), padded = v_cache.shape(3);
  require(int64_t(k.shape(1)) == KV * C && int64_t(v.shape(1)) == KV * C, "k and v must be (T, KV heads * head_dim)");
  check_tables(k.shape(0), k_cache, v_cache, positions, row_start, block_tables);
  nb::gil_scoped_release release;
  for (size_t r = 0; r + 1 < row_start.shape(0); ++r) {
    const int32_t* table = block_tables.data() + r * block_tables.shape(1);
    for (int64_t t = row_start.data()[r]; t < row_start.data()[r + 1]; ++t) {
      const int64_t position = positions.data()[t], block = table[position / page], at = position % page;
      for (int64_t h = 0; h < KV; ++h) {
        const float* key = k.data() + (t * KV + h) * C;
        float* column = k_cache.data() + (block * KV + h) * C * page + at;
        for (int64_t c = 0; c < C; ++c) column[c * page] = key[c];
        std::copy_n(v.data() + (t * KV + h) * C, C, v_cache.data() + ((block * KV + h) * page + at) * padded);
      }
    }
  }
}

void attention(Cpu& cpu, Array<const float, 2> q, Array<const float, 4> k_cache, Array<const float, 4> v_cache,
               Array<const int32_t, 1> positions, Array<const int32_t, 1> row_start,
               Array<const int32_t, 2> block_tables, const std::vector<int32_t>& kv_head_of_head, float scale,
               int64_t window, Array<float, 2> out) {
  AttentionArgs args;
  args.H = kv_head_of_head.size(), args.KV = k_cache.shape(1), args.C = k_cache.shape(2);
  args.padded_C = v_cache.shape(3), args.block_tokens = k_cache.shape(3);
  require(int64_t(q.shape(1)) == args.H * args.C && q.size() == out.size(), "q and out must be (T, heads * head_dim)");
  require(args.C <= 256, "head_dim must be at most 256");
  check_tables(q.shape(0), k_cache, v_cache, positions, row_start, block_tables);
  args.q = q.data(), args.k_cache = k_cache.data(), args.v_cache = v_cache.data(), args.out = out.data();
  args.positions = positions.data(), args.block_tables = block_tables.data();
  args.block_table_stride = block_tables.shape(1);
  args.window = window > 0 ? window : INT64_MAX;
  args.scale = scale;
  const std::vector<AttentionTask> tasks = attention_tasks(args, row_start, kv_head_of_head);
  cpu.share(tasks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) cpu.kernels->attention(args, tasks[i]);
  });
}

}  // namespace

void bind_attention(nb::class_<Cpu>& cpu) {
  cpu.def("write_kv", &write_kv, "k"_a, "v"_a, "k_cache"_a, "v_cache"_a, "positions"_a, "row_start"_a, "block_tables"_a)
      .def("attention", &attention, "q"_a, "k_cache"_a, "v_cache"_a, "positions"_a, "row_start"_a, "block_tables"_a,
           "kv_head_of_head"_a, "scale"_a, "window"_a, "out"_a);
}

}  // namespace tinycluster
