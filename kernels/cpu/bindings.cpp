// Python faces of the kernels. Each checks shapes, lets go of the GIL, and deals the work to the pool's threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>

#include "dispatch.h"
#include "kernels.h"
#include "pool.h"
#include "select.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tinycluster {
namespace {

template <class T, int DIMS>
using Array = nb::ndarray<T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* rule) {
  if (!condition) throw nb::value_error(rule);
}

// A packed matrix and the arrays that hold it.
struct WeightHandle {
  Weight weight;
  nb::object values, scales, minimums;
};

int64_t values_bytes(const Weight& w) {
  const int64_t element = w.format == Format::f32 ? 4 : 2;
  if (!w.is_grouped()) return w.tiles() * w.K * TILE * element;
  return w.tiles() * w.groups() * TILE * (w.format == Format::q8 ? GROUP : GROUP / 2);
}

class Cpu {
 public:
  Cpu(int num_threads, const std::string& isa, int activation_bits)
      : pool_(num_threads), activation_bits_(activation_bits) {
    require(num_threads >= 1, "num_threads must be at least 1");
    require(activation_bits == 8 || activation_bits == 16, "activation_bits must be 8 or 16");
    for (const Kernels* kernels : supported_kernels())
      if (isa == "auto" || isa == kernels->name) kernels_ = kernels;
    require(kernels_ != nullptr, "this machine does not have the instruction set asked for");
  }

  const char* isa() const { return kernels_->name; }
  int num_threads() const { return pool_.num_threads(); }

  void linear(Array<const float, 2> x, const WeightHandle& handle, std::optional<Array<const float, 1>> bias,
              Array<float, 2> out) {
    const Weight& w = handle.weight;
    require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
    require(!bias || int64_t(bias->shape(0)) == w.N, "bias must be (N,)");
    LinearArgs args = {&w, x.data(), {}, int64_t(x.shape(0)), bias ? bias->data() : nullptr, out.data(), nullptr, 0};
    run_linear(args, x.shape(1));
  }

  bool linear_fixed(Array<const float, 2> x, const WeightHandle& handle, float limit, Array<int64_t, 2> out) {
    const Weight& w = handle.weight;
    require(int64_t(out.shape(0)) == int64_t(x.shape(0)) && int64_t(out.shape(1)) == w.N, "out must be (T, N)");
    LinearArgs args = {&w, x.data(), {}, int64_t(x.shape(0)), nullptr, nullptr, out.data(), limit};
    return run_linear(args, x.shape(1));
  }

  void embedding(Array<const int32_t, 1> tokens, const WeightHandle& handle, int64_t first_row, Array<float, 2> out) {
    const Weight& w = handle.weight;
    const int64_t K = out.shape(1);
    require(out.shape(0) == tokens.shape(0) && K == w.K, "out must be (T, K)");
    const int32_t* token = tokens.data();
    float* rows = out.data();
    for_rows(tokens.shape(0), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t row = token[t] - first_row;
        if (row >= 0 && row < w.N) {
          kernels_->dequantize_row(w, row, rows + t * K);
        } else {
          std::fill(rows + t * K, rows + (t + 1) * K, 0.0f);
        }
      }
    });
  }

  void rms_norm(Array<const float, 2> x, Array<const float, 1> weight, float eps, Array<float, 2> out) {
    const int64_t dim = weight.shape(0);
    require(x.shape(0) == out.shape(0) && x.shape(1) == out.shape(1), "out must have the shape of x");
    require(dim > 0 && x.shape(1) % dim == 0, "the columns of x must be a multiple of weight's length");
    for_rows(x.shape(0) * (x.shape(1) / dim), [&](int64_t begin, int64_t end) {
      kernels_->rms_norm(x.data(), weight.data(), eps, dim, out.data(), begin, end);
    });
  }

  void swiglu(Array<const float, 2> gate, Array<const float, 2> up, Array<float, 2> out) {
    require(gate.size() == up.size() && gate.size() == out.size(), "gate, up and out must have one shape");
    nb::gil_scoped_release release;
    pool_.run(gate.size(), 4096,
              [&](int64_t begin, int64_t end) { kernels_->swiglu(gate.data(), up.data(), out.data(), begin, end); });
  }

  void add_fixed(Array<float, 2> x, Array<const int64_t, 2> fixed, std::optional<Array<const float, 1>> bias) {
    require(x.shape(0) == fixed.shape(0) && x.shape(1) == fixed.shape(1), "fixed must have the shape of x");
    require(!bias || bias->shape(0) == x.shape(1), "bias must be as long as a row of x");
    for_rows(x.shape(0), [&](int64_t begin, int64_t end) {
      kernels_->add_fixed(x.data(), fixed.data(), bias ? bias->data() : nullptr, x.shape(1), begin, end);
    });
  }

  void rope(Array<float, 2> x, Array<const float, 2> cos, Array<const float, 2> sin, Array<const int32_t, 1> positions,
            int64_t head_dim) {
    require(head_dim > 0 && x.shape(1) % head_dim == 0, "the columns of x must be a multiple of head_dim");
    require(int64_t(cos.shape(1)) * 2 == head_dim && cos.size() == sin.size(), "cos and sin must be (P, head_dim / 2)");
    require(positions.shape(0) == x.shape(0), "positions must be (T,)");
    for (size_t t = 0; t < positions.shape(0); ++t)
      require(positions.data()[t] >= 0 && size_t(positions.data()[t]) < cos.shape(0),
              "a position is outside the table");
    for_rows(x.shape(0), [&](int64_t begin, int64_t end) {
      kernels_->rope(x.data(), cos.data(), sin.data(), positions.data(), x.shape(1) / head_dim, head_dim, begin, end);
    });
  }

  void write_kv(Array<const float, 2> k, Array<const float, 2> v, Array<float, 4> k_cache, Array<float, 4> v_cache,
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

  void attention(Array<const float, 2> q, Array<const float, 4> k_cache, Array<const float, 4> v_cache,
                 Array<const int32_t, 1> positions, Array<const int32_t, 1> row_start,
                 Array<const int32_t, 2> block_tables, const std::vector<int32_t>& kv_head_of_head, float scale,
                 int64_t window, Array<float, 2> out) {
    AttentionArgs args;
    args.H = kv_head_of_head.size(), args.KV = k_cache.shape(1), args.C = k_cache.shape(2);
    args.padded_C = v_cache.shape(3), args.block_tokens = k_cache.shape(3);
    require(int64_t(q.shape(1)) == args.H * args.C && q.size() == out.size(),
            "q and out must be (T, heads * head_dim)");
    require(args.C <= 256, "head_dim must be at most 256");
    check_tables(q.shape(0), k_cache, v_cache, positions, row_start, block_tables);
    args.q = q.data(), args.k_cache = k_cache.data(), args.v_cache = v_cache.data(), args.out = out.data();
    args.positions = positions.data(), args.block_tables = block_tables.data();
    args.block_table_stride = block_tables.shape(1);
    args.window = window > 0 ? window : INT64_MAX;
    args.scale = scale;
    const std::vector<AttentionTask> tasks = attention_tasks(args, row_start, kv_head_of_head);
    nb::gil_scoped_release release;
    pool_.run(tasks.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) kernels_->attention(args, tasks[i]);
    });
  }

  void softmax(Array<const float, 2> x, Array<float, 2> out) {
    require(x.size() == out.size(), "out must have the shape of x");
    const int64_t size = x.shape(1);
    for_rows(x.shape(0), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        kernels_->softmax(x.data() + row * size, out.data() + row * size, size);
    });
  }

 private:
  template <class Body>
  void for_rows(int64_t rows, const Body& body) {
    nb::gil_scoped_release release;
    const int64_t piece = (rows + 2 * pool_.num_threads() - 1) / (2 * pool_.num_threads());
    pool_.run(rows, piece < 8 ? 8 : piece, body);
  }

  bool run_linear(LinearArgs& args, int64_t columns) {
    const Weight& w = *args.weight;
    require(columns == w.K, "x must be (T, K)");
    nb::gil_scoped_release release;
    if (w.is_grouped()) {
      const int64_t groups = args.T * w.groups();
      const int planes = activation_bits_ / 8;
      codes_.resize(planes * groups * GROUP), scales_.resize(groups), sums_.resize(groups);
      int8_t* high = planes == 2 ? codes_.data() + groups * GROUP : nullptr;
      args.xq = {high, codes_.data(), scales_.data(), sums_.data()};
      pool_.run(args.T, 16, [&](int64_t begin, int64_t end) { kernels_->quantize(w, args.x, args.xq, begin, end); });
    }
    std::atomic<bool> fits{true};
    // Small pieces even out the threads, long ones stream from memory; four tiles keep several chains in flight.
    const int64_t piece = std::max<int64_t>(4, w.tiles() / (4 * pool_.num_threads()) / 4 * 4);
    pool_.run(w.tiles(), piece, [&](int64_t begin, int64_t end) {
      if (!kernels_->linear(args, begin, end)) fits.store(false, std::memory_order_relaxed);
    });
    return fits.load();
  }

  template <class KCache, class VCache>
  static void check_tables(size_t T, const KCache& k_cache, const VCache& v_cache, Array<const int32_t, 1> positions,
                           Array<const int32_t, 1> row_start, Array<const int32_t, 2> tables) {
    const int64_t page = k_cache.shape(3), num_blocks = k_cache.shape(0);
    require(page % LANES_PER_PAGE == 0, "block_tokens must be a multiple of 16");
    require(v_cache.shape(0) == k_cache.shape(0) && v_cache.shape(1) == k_cache.shape(1) &&
                v_cache.shape(2) == k_cache.shape(3) && v_cache.shape(3) % LANES_PER_PAGE == 0,
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

  static std::vector<AttentionTask> attention_tasks(const AttentionArgs& args, Array<const int32_t, 1> row_start,
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

  static constexpr int LANES_PER_PAGE = 16;

  Pool pool_;
  int activation_bits_;
  const Kernels* kernels_ = nullptr;
  std::vector<int8_t> codes_;
  std::vector<float> scales_;
  std::vector<int32_t> sums_;
};

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Format format_of(const std::string& name) {
  const char* names[] = {"f32", "f16", "bf16", "q8", "q4"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return Format(i);
  throw nb::value_error("format must be f32, f16, bf16, q8 or q4");
}

}  // namespace
}  // namespace tinycluster

NB_MODULE(_cpu, m) {
  using namespace tinycluster;
  m.doc() = "Native kernels for CPUs; `tinycluster.kernels.ops` is their public face.";

  m.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported_kernels()) names.push_back(kernels->name);
    return names;
  });

  m.def(
      "argmax",
      [](Array<const float, 2> x, Array<int32_t, 1> out) {
        require(x.shape(1) > 0 && out.shape(0) == x.shape(0), "x must be (O, V) with V > 0, out (O,)");
        nb::gil_scoped_release release;
        argmax(x.data(), x.shape(0), x.shape(1), out.data());
      },
      "x"_a, "out"_a);
  m.def(
      "top_k",
      [](Array<const float, 2> x, Array<int32_t, 2> out) {
        require(out.shape(0) == x.shape(0) && out.shape(1) <= x.shape(1), "x must be (O, V), out (O, k) with k <= V");
        nb::gil_scoped_release release;
        top_k(x.data(), x.shape(0), x.shape(1), out.shape(1), out.data());
      },
      "x"_a, "out"_a);

  nb::class_<WeightHandle>(m, "Weight")
      .def(
          "__init__",
          [](WeightHandle* self, const std::string& format, int64_t rows, int64_t columns, int64_t unit, Bytes values,
             std::optional<Halves> scales, std::optional<Halves> minimums) {
            Weight w = {format_of(format), rows, columns, unit, values.data(), nullptr, nullptr};
            require(rows >= 0 && columns >= 0 && unit >= 1, "rows, columns and unit must not be negative");
            require(int64_t(values.size()) == values_bytes(w), "values do not have the size of the layout");
            const size_t num_scales = w.tiles() * w.groups() * TILE;
            if (w.is_grouped()) require(scales && scales->size() == num_scales, "scales must be (tiles, G, 16)");
            if (w.format == Format::q4) require(minimums && minimums->size() == num_scales, "minimums likewise");
            if (scales) w.scales = scales->data();
            if (minimums) w.minimums = minimums->data();
            new (self) WeightHandle{w, nb::cast(values), scales ? nb::cast(*scales) : nb::none(),
                                    minimums ? nb::cast(*minimums) : nb::none()};
          },
          "format"_a, "rows"_a, "columns"_a, "unit"_a, "values"_a, "scales"_a = nb::none(), "minimums"_a = nb::none());

  nb::class_<Cpu>(m, "Cpu")
      .def(nb::init<int, const std::string&, int>(), "num_threads"_a, "isa"_a = "auto", "activation_bits"_a = 16)
      .def_prop_ro("isa", &Cpu::isa)
      .def_prop_ro("num_threads", &Cpu::num_threads)
      .def("linear", &Cpu::linear, "x"_a, "weight"_a, "bias"_a.none(), "out"_a)
      .def("linear_fixed", &Cpu::linear_fixed, "x"_a, "weight"_a, "limit"_a, "out"_a)
      .def("embedding", &Cpu::embedding, "tokens"_a, "weight"_a, "first_row"_a, "out"_a)
      .def("rms_norm", &Cpu::rms_norm, "x"_a, "weight"_a, "eps"_a, "out"_a)
      .def("swiglu", &Cpu::swiglu, "gate"_a, "up"_a, "out"_a)
      .def("add_fixed", &Cpu::add_fixed, "x"_a, "fixed"_a, "bias"_a.none())
      .def("rope", &Cpu::rope, "x"_a, "cos"_a, "sin"_a, "positions"_a, "head_dim"_a)
      .def("write_kv", &Cpu::write_kv, "k"_a, "v"_a, "k_cache"_a, "v_cache"_a, "positions"_a, "row_start"_a,
           "block_tables"_a)
      .def("attention", &Cpu::attention, "q"_a, "k_cache"_a, "v_cache"_a, "positions"_a, "row_start"_a,
           "block_tables"_a, "kv_head_of_head"_a, "scale"_a, "window"_a, "out"_a)
      .def("softmax", &Cpu::softmax, "x"_a, "out"_a);
}
