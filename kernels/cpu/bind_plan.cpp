// Python face of plans: kernels/native_plan.py compiles a Program by calling these, once per operation.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <tuple>

#include "cpu.h"
#include "plan.h"
#include "plan_collectives.h"
#include "plan_products.h"
#include "plan_rows.h"

using namespace nanobind::literals;

namespace tinycluster {
namespace {

using Vector = Array<const float, 1>;
using Table = Array<const float, 2>;

// The sums of so many tokens, beside a share of the weights, stay in the second cache level.
constexpr int64_t BLOCK_TOKENS = 64;
static_assert(BLOCK_TOKENS % CODE_BLOCK == 0);

// A plan with what its operations point to. Buffers are named by their number.
class BoundPlan {
 public:
  BoundPlan(Cpu& cpu, int64_t num_positions) : cpu_(cpu), positions_(num_positions) {}
  BoundPlan(const BoundPlan&) = delete;

  int buffer(int64_t width, bool is_outputs, int code_bits) {
    require(code_bits == 0 || code_bits == 8 || code_bits == 16, "codes have 8 or 16 bits");
    buffers_.push_back({width, is_outputs, code_bits});
    return int(buffers_.size()) - 1;
  }

  // Where each buffer begins in an arena that has room for so many rows.
  void place(const std::vector<int64_t>& offsets, Array<uint8_t, 1> arena, int64_t max_tokens, int64_t max_outputs) {
    require(offsets.size() == buffers_.size(), "every buffer must have an offset");
    for (size_t i = 0; i < offsets.size(); ++i) {
      require(offsets[i] >= 0 && offsets[i] <= int64_t(arena.size()), "an offset is outside the arena");
      buffers_[i].offset = offsets[i];
    }
    arena_ = arena, max_tokens_ = max_tokens, max_outputs_ = max_outputs;
  }

  // What is added until close_blocks runs block after block of tokens, where the ranks of `table` share memory. Over a
  // network few long messages are better than many short ones.
  void open_blocks(const std::string& name, nb::object table) {
    const CollectiveTable& ranks = *table_of(table);
    const int64_t tokens = std::max(BLOCK_TOKENS, CODE_BLOCK * int64_t(ranks.size));  // enough for all to have some
    auto blocks = std::make_unique<TokenBlocks>(name, ranks.is_in_memory ? tokens : INT64_MAX);
    TokenBlocks* const opened = blocks.get();
    add(std::move(blocks));
    blocks_ = opened;
  }
  void close_blocks() { blocks_ = nullptr; }

  // `table` is that of the ranks that deal the rows among themselves, if they do.
  void open_rows(const std::string& name, bool is_outputs, std::optional<nb::object> table) {
    const CollectiveTable* ranks = table ? table_of(*table) : nullptr;
    auto group = std::make_unique<RowGroup>(name, is_outputs, ranks ? ranks->rank : 0, ranks ? ranks->size : 1);
    rows_ = group.get();
    add(std::move(group));
  }

  void embedding(const WeightHandle& weight, int64_t first_row, int out) {
    EmbeddingRows op;
    op.weight = &weight.weight, op.first_row = first_row, op.out = at(out);
    require(op.out->width == weight.weight.K, "out must have the weight's columns");
    add_rows(std::move(op));
  }
  void rms_norm(int x, Vector weight, float eps, int out) {
    NormRows op;
    op.x = at(x), op.out = at(out), op.weight = weight.data(), op.eps = eps, op.dim = int64_t(weight.shape(0));
    require(op.dim > 0 && op.x->width % op.dim == 0 && op.x->width == op.out->width, "x must be rows of the weight");
    add_rows(std::move(op));
  }
  void add_fixed(int x, int fixed, std::optional<Vector> bias) {
    AddFixedRows op;
    op.x = at(x), op.fixed = at(fixed), op.bias = bias ? bias->data() : nullptr;
    require(op.x->width == op.fixed->width && (!bias || int64_t(bias->shape(0)) == op.x->width), "widths must agree");
    add_rows(std::move(op));
  }
  void rope(int x, Table cos, Table sin, int64_t head_dim) {
    RopeRows op;
    op.x = at(x), op.cos = cos.data(), op.sin = sin.data(), op.head_dim = head_dim;
    require(int64_t(cos.shape(1)) * 2 == head_dim && cos.size() == sin.size(), "cos and sin must be (P, head_dim / 2)");
    require(op.x->width % head_dim == 0, "x must be rows of heads");
    has_rope_ = true;
    add_rows(std::move(op));
  }
  void write_kv(int k, int v, const KVCacheHandle& cache) {
    WriteKVRows op;
    op.k = at(k), op.v = at(v), op.cache = &cache.cache;
    require(op.k->width == cache.cache.KV * cache.cache.C && op.v->width == op.k->width, "k and v must fit the cache");
    caches_.push_back(&cache.cache);
    add_rows(std::move(op));
  }
  void swiglu(int gate, int up, int out) {
    SwiGluRows op;
    op.gate = at(gate), op.up = at(up), op.out = at(out);
    require(op.gate->width == op.out->width && op.up->width == op.out->width, "gate, up and out must be alike");
    add_rows(std::move(op));
  }
  void quantize(int x, const WeightHandle& weight, int out) {
    QuantizeRows op;
    op.x = at(x), op.out = at(out), op.weight = &weight.weight;
    require(op.x->width == op.weight->K && op.out->width == op.weight->groups * GROUP, "out must have x's groups");
    add_rows(std::move(op));
  }
  void gather_rows(int x, int out) {
    GatherRows op;
    op.x = at(x), op.out = at(out);
    require(op.x->width == op.out->width, "out must have x's columns");
    add_rows(std::move(op));
  }

  // (x, weight, bias, out, limit, is_residual) of every product; limit 0 stands for a plain one.
  using Part = std::tuple<int, const WeightHandle*, std::optional<Vector>, int, float, bool>;
  void products(const std::string& name, const std::vector<Part>& parts) {
    std::vector<Products::Part> ops;
    for (const auto& [x, weight, bias, out, limit, is_residual] : parts) {
      check_product(*weight, x, bias);
      require(at(out)->width == weight->weight.N, "out must have the weight's rows as columns");
      ops.push_back({at(x), &weight->weight, bias ? bias->data() : nullptr, at(out), limit, is_residual});
    }
    add(std::make_unique<Products>(name, std::move(ops)));
  }
  void gate_up(const std::string& name, int x, const WeightHandle& gate, std::optional<Vector> gate_bias,
               const WeightHandle& up, std::optional<Vector> up_bias, int out, bool makes_codes) {
    check_product(gate, x, gate_bias), check_product(up, x, up_bias);
    const Weight &g = gate.weight, &u = up.weight;
    require(g.N == u.N && g.K == u.K && g.format == u.format && g.N % GROUP == 0 && at(out)->width == g.N,
            "gate, up and out must be alike, in columns of 32");
    add(std::make_unique<GateUp>(name, at(x), GateUp::Part{&g, gate_bias ? gate_bias->data() : nullptr},
                                 GateUp::Part{&u, up_bias ? up_bias->data() : nullptr}, at(out), makes_codes));
  }
  void attention(const std::string& name, int q, const KVCacheHandle& cache,
                 const std::vector<int32_t>& kv_head_of_head, float scale, int64_t window, int out) {
    const int64_t H = int64_t(kv_head_of_head.size());
    require(at(q)->width == H * cache.cache.C && at(out)->width == at(q)->width, "q and out must be rows of heads");
    for (int32_t head : kv_head_of_head) require(head >= 0 && head < cache.cache.KV, "a KV head does not exist");
    const int64_t positions = window > 0 ? window : NO_WINDOW, padded_C = cache.cache.padded_C();
    const auto [tasks, is_new] = tasks_.try_emplace({kv_head_of_head, padded_C, positions},
                                                    head_groups(kv_head_of_head.data(), H), padded_C, positions);
    add(std::make_unique<Attention>(name, at(q), &cache.cache, &tasks->second, H, scale, positions, at(out)));
  }
  void all_reduce(const std::string& name, nb::object table, int x, bool is_fixed) {
    add(std::make_unique<AllReduce>(name, table_of(table), at(x), is_fixed));
  }
  void reduce_scatter(const std::string& name, nb::object table, int x) {
    add(std::make_unique<ReduceScatter>(name, table_of(table), at(x)));
  }
  void gather_dealt(const std::string& name, nb::object table, int x) {
    add(std::make_unique<GatherDealt>(name, table_of(table), at(x)));
  }
  void gather_logits(const std::string& name, nb::object table, int x, const std::vector<int64_t>& widths, int parts,
                     int out) {
    add(std::make_unique<GatherLogits>(name, table_of(table), at(x), widths, at(parts), at(out)));
  }
  void transfer(const std::string& name, nb::object table, size_t peer, int x, bool is_send) {
    add(std::make_unique<Transfer>(name, table_of(table), at(x), peer, is_send));
  }

  // None, or the name of the operation that failed and why.
  std::optional<std::tuple<std::string, std::string, bool>> run(
      Array<const int32_t, 1> tokens, Array<const int32_t, 1> positions, Array<const int32_t, 1> row_start,
      Array<const int32_t, 2> tables, Array<const int32_t, 1> output_rows, bool wants_all_logits) {
    const int64_t T = int64_t(tokens.shape(0)), O = int64_t(output_rows.shape(0));
    require(arena_.has_value() && T <= max_tokens_ && O <= max_outputs_, "the arena has no room for the step");
    require(int64_t(positions.shape(0)) == T && row_start.shape(0) == tables.shape(0) + 1,
            "the step's arrays disagree");
    for (int64_t o = 0; o < O; ++o)
      require(output_rows.data()[o] >= 0 && output_rows.data()[o] < T, "an output row is not a row of the step");
    for (int64_t t = 0; has_rope_ && t < T; ++t)
      require(positions.data()[t] < positions_, "a position is outside the rope table");
    const KVStep kv = {positions.data(),         row_start.data(),        tables.data(), T,
                       int64_t(tables.shape(0)), int64_t(tables.shape(1))};
    if (!caches_.empty())
      if (const char* rule = broken_rule(kv, *caches_[0])) throw nb::value_error(rule);
    nb::gil_scoped_release release;
    for (auto& [key, tasks] : tasks_) tasks.deal(kv, cpu_.pool.num_threads());
    const Step step = {{tokens.data(), kv, output_rows.data(), T, O, wants_all_logits}, arena_->data(), cpu_.kernels};
    const Op* failed = plan_.run(cpu_.pool, step);
    if (!failed) return std::nullopt;
    return std::make_tuple(failed->name(), std::string(failed->failure()), failed->waited_ns() >= 0);
  }

  // (communicate, wait, bubble) of all steps so far, in nanoseconds; any thread may ask while another one runs a step.
  std::tuple<int64_t, int64_t, int64_t> times() const {
    const Tally::Times times = plan_.times();
    return {times.communicate_ns, times.wait_ns, times.bubble_ns};
  }
  void set_tracing(bool on) { plan_.set_tracing(on); }
  std::vector<std::tuple<std::string, int, int64_t, int64_t>> take_timeline() {
    std::vector<std::tuple<std::string, int, int64_t, int64_t>> spans;
    for (const Span& s : plan_.take_timeline()) spans.emplace_back(s.op->name(), int(s.kind), s.start_ns, s.end_ns);
    return spans;
  }

 private:
  Buffer* at(int index) {
    require(index >= 0 && index < int(buffers_.size()), "there is no such buffer");
    return &buffers_[size_t(index)];
  }
  void add(std::unique_ptr<Op> op) { blocks_ ? blocks_->add(std::move(op)) : plan_.add(std::move(op)); }
  template <class RowsOp>
  void add_rows(RowsOp op) {
    require(rows_ != nullptr, "open_rows comes first");
    rows_->add(std::make_unique<RowsOp>(std::move(op)));
  }
  void check_product(const WeightHandle& weight, int x, const std::optional<Vector>& bias) {
    const Weight& w = weight.weight;
    require(at(x)->width == (w.is_grouped() ? w.groups * GROUP : w.K), "x must have the weight's columns");
    require(!bias || int64_t(bias->shape(0)) == w.N, "bias must be (N,)");
  }
  const CollectiveTable* table_of(const nb::object& table) {
    require(PyCapsule_IsValid(table.ptr(), kCollectiveTableName), "table must be a capsule of collective_table.h");
    tables_.push_back(table);
    return static_cast<const CollectiveTable*>(PyCapsule_GetPointer(table.ptr(), kCollectiveTableName));
  }

  Cpu& cpu_;
  int64_t positions_;  // of the rope table
  bool has_rope_ = false;
  Plan plan_;
  RowGroup* rows_ = nullptr;
  TokenBlocks* blocks_ = nullptr;
  std::deque<Buffer> buffers_;
  std::vector<nb::object> tables_;  // keep their groups alive
  std::vector<const KVCache*> caches_;
  std::map<std::tuple<std::vector<int32_t>, int64_t, int64_t>, AttentionTasks> tasks_;
  std::optional<Array<uint8_t, 1>> arena_;
  int64_t max_tokens_ = 0, max_outputs_ = 0;
};

}  // namespace

void bind_plan(nb::module_& m) {
  nb::class_<BoundPlan>(m, "Plan")
      .def(nb::init<Cpu&, int64_t>(), "cpu"_a, "num_positions"_a, nb::keep_alive<1, 2>())
      .def("buffer", &BoundPlan::buffer, "width"_a, "is_outputs"_a, "code_bits"_a)
      .def("place", &BoundPlan::place, "offsets"_a, "arena"_a, "max_tokens"_a, "max_outputs"_a)
      .def("open_blocks", &BoundPlan::open_blocks, "name"_a, "table"_a)
      .def("close_blocks", &BoundPlan::close_blocks)
      .def("open_rows", &BoundPlan::open_rows, "name"_a, "is_outputs"_a, "table"_a.none() = nb::none())
      .def("embedding", &BoundPlan::embedding, "weight"_a, "first_row"_a, "out"_a)
      .def("rms_norm", &BoundPlan::rms_norm, "x"_a, "weight"_a, "eps"_a, "out"_a)
      .def("add_fixed", &BoundPlan::add_fixed, "x"_a, "fixed"_a, "bias"_a.none())
      .def("rope", &BoundPlan::rope, "x"_a, "cos"_a, "sin"_a, "head_dim"_a)
      .def("write_kv", &BoundPlan::write_kv, "k"_a, "v"_a, "cache"_a)
      .def("swiglu", &BoundPlan::swiglu, "gate"_a, "up"_a, "out"_a)
      .def("quantize", &BoundPlan::quantize, "x"_a, "weight"_a, "out"_a)
      .def("gather_rows", &BoundPlan::gather_rows, "x"_a, "out"_a)
      .def("products", &BoundPlan::products, "name"_a, "parts"_a)
      .def("gate_up", &BoundPlan::gate_up, "name"_a, "x"_a, "gate"_a, "gate_bias"_a.none(), "up"_a, "up_bias"_a.none(),
           "out"_a, "makes_codes"_a)
      .def("attention", &BoundPlan::attention, "name"_a, "q"_a, "cache"_a, "kv_head_of_head"_a, "scale"_a, "window"_a,
           "out"_a)
      .def("all_reduce", &BoundPlan::all_reduce, "name"_a, "table"_a, "x"_a, "is_fixed"_a)
      .def("reduce_scatter", &BoundPlan::reduce_scatter, "name"_a, "table"_a, "x"_a)
      .def("gather_dealt", &BoundPlan::gather_dealt, "name"_a, "table"_a, "x"_a)
      .def("gather_logits", &BoundPlan::gather_logits, "name"_a, "table"_a, "x"_a, "widths"_a, "parts"_a, "out"_a)
      .def("transfer", &BoundPlan::transfer, "name"_a, "table"_a, "peer"_a, "x"_a, "is_send"_a)
      .def("run", &BoundPlan::run, "tokens"_a, "positions"_a, "row_start"_a, "block_tables"_a, "output_rows"_a,
           "wants_all_logits"_a)
      .def("times", &BoundPlan::times)
      .def("set_tracing", &BoundPlan::set_tracing, "on"_a)
      .def("take_timeline", &BoundPlan::take_timeline);
}

}  // namespace tinycluster
