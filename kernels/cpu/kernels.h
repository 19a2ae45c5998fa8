// The table of native kernels: one instance per instruction set, all with the same bits.
//
//   T tokens   N output rows   K columns (k)   G groups of 32 along k   H query heads   C head_dim
#pragma once

#include <cstddef>
#include <cstdint>

#include "probe.h"

#include "attention.h"

namespace tinycluster {

enum class Format : int { f32, f16, bf16, q8, q4 };

constexpr int TILE = 16;   // output rows that one vector computes
constexpr int GROUP = 32;  // k-values that share a scale

// A matrix (N, K) laid out for `linear`: tiles of 16 output rows, padded with zero rows.
//   dense   (tiles, K, 16)
//   q8      (tiles, G) records of codes (8 quads, 16 rows, 4) as code + 128, then scales (16)
//   q4      (tiles, G) records of codes (4 quads, 16 rows, 4), quad j low, j + 4 high, then scales (16), minimums (16)
// Scales and minimums are float16. k is cut into units of `unit` columns (the last may be short); groups restart at
// each unit.
// What follows from the shape is kept too: kernels ask for it once per block, and a division takes as long as a group.
struct Weight {
  Format format;
  int64_t N, K, unit;
  const uint8_t* values;

  int64_t tiles, units, groups_per_unit;
  int64_t groups;        // of all units
  int64_t record_bytes;  // of one column of a dense tile, or of one group
  int64_t tile_bytes;

  Weight(Format format, int64_t N, int64_t K, int64_t unit, const uint8_t* values)
      : format(format), N(N), K(K), unit(unit), values(values) {
    constexpr int64_t bytes[] = {TILE * 4, TILE * 2, TILE * 2, TILE * (GROUP + 2), TILE * (GROUP / 2 + 4)};
    tiles = (N + TILE - 1) / TILE;
    units = (K + unit - 1) / unit;
    groups_per_unit = (unit + GROUP - 1) / GROUP;
    const int64_t last = K - (units - 1) * unit;
    groups = K ? (units - 1) * groups_per_unit + (last + GROUP - 1) / GROUP : 0;
    record_bytes = bytes[int(format)];
    tile_bytes = record_bytes * (is_grouped() ? groups : K);
  }
  bool is_grouped() const { return format == Format::q8 || format == Format::q4; }
};

constexpr int CODE_BLOCK = 4;  // tokens whose codes lie together

// Activations (T, K) rounded to integers of 8 or 16 bits in the weight's groups, which are padded with zeros. A 16-bit
// code is 256 * high + low. Tokens lie in blocks of 4, of which the last may be short: for a block of n tokens there is
// one record per group,
//   high quads (8, n, 4) if there are 16 bits | low quads (8, n, 4) | scales (n) | offsets (n) | sums (n)
// with offset = -128 * (sum of the codes) as int32 and sum = scale * (sum of the codes) as float.
struct Codes {
  uint8_t* records;
  int bits;
  int64_t groups;

  static constexpr int64_t token_bytes(int bits) { return GROUP * bits / 8 + 12; }
  // The records of the block that starts at `token`, itself a multiple of 4.
  uint8_t* block(int64_t token) const { return records + token * groups * token_bytes(bits); }
};

// One product of T tokens with a weight. Exactly one of out, fixed and residual is where the result goes.
struct LinearArgs {
  const Weight* weight;
  const float* x;  // (T, K); dense formats
  Codes codes;     // grouped formats
  int64_t T;
  const float* bias;  // (N,) or null; added to out, or to the residual's sum
  float* out;         // (T, N)
  int64_t* fixed;     // (T, N)
  float* residual;    // (T, N), to which the sum of the units is added
  float limit;        // of one unit's partial; fixed and residual only
};

// out = swiglu(x gate^T, x up^T), as floats or, if `out` is null, as codes in groups of 32 columns.
struct GateUpArgs {
  LinearArgs gate, up;  // only weight, x, codes, T and bias are read
  float* out;
  Codes out_codes;
};

// How one row's next token is chosen; kernels/sampling_reference.py has the definition.
struct SampleArgs {
  const float* logits;  // (V,)
  int64_t V;
  double temperature;   // below GREEDY_BELOW the rest is unused
  int64_t top_k;        // 0 and below are off
  double top_p, min_p;  // 1 and 0 are off
  uint64_t random_bits;
};
constexpr double GREEDY_BELOW = 1e-5;

// One thread's memory for choosing among V tokens; arrays of V + 32, and one mass per chunk of tokens.
struct SampleScratch {
  float *x, *p, *spare_x, *spare_p;
  int32_t* ids;
  int64_t* masses;
};
constexpr int64_t SAMPLE_CHUNK = 1024;

// What is told of one row's probabilities; kernels/logprobs_reference.py has the definition.
struct LogprobArgs {
  const float* logits;  // (V,)
  int64_t V, token, num_top;
  float* logprob;
  int32_t* rank;
  int32_t* top_ids;     // (num_top,), at most V
  float* top_logprobs;  // (num_top,)
};

struct Kernels {
  const char* name;
  // Tiles [begin, end) of the output rows, for every token. False if a partial does not fit.
  bool (*linear)(const LinearArgs&, int64_t begin, int64_t end);
  // Groups [begin, end) of 32 output columns, for every token.
  void (*gate_up)(const GateUpArgs&, int64_t begin, int64_t end);
  // Tokens [begin, end) of T; begin is a multiple of 4, and so is end unless it is T.
  void (*quantize)(const Weight&, const float* x, const Codes&, int64_t begin, int64_t end);
  void (*dequantize_row)(const Weight&, int64_t row, float* out);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t dim, float* out, int64_t begin, int64_t end);
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t begin, int64_t end);
  void (*add_fixed)(float* x, const int64_t* fixed, const float* bias, int64_t dim, int64_t begin, int64_t end);
  void (*rope)(float* x, const float* cos, const float* sin, const int32_t* positions, int64_t heads, int64_t head_dim,
               int64_t begin, int64_t end);
  // The step's tokens [begin, end), of any requests.
  void (*write_kv)(const KVWriteArgs&, int64_t begin, int64_t end);
  void (*attention)(const AttentionArgs&, const AttentionTask&);
  void (*softmax)(const float* x, float* out, int64_t size);
  double (*integer_dots)(const ProbeOperands&);  // how many products there were
  double (*float_dots)(const ProbeOperands&);
  double (*read_values)(const float* x, int64_t n);  // their sum
  // Writes the token. False if a logit is not a number, or the largest, divided by the temperature, is not finite.
  bool (*sample)(const SampleArgs&, const SampleScratch&, int64_t* token);
  // False if a logit is not a number, or the largest is not finite.
  bool (*logprobs)(const LogprobArgs&);
};

extern const Kernels plain_kernels;
#ifdef TINYCLUSTER_X86
extern const Kernels avx2_kernels, avx512_kernels, vnni_kernels;
#endif

}  // namespace tinycluster
