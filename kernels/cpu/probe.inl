// What this machine can do at most: dot products out of registers, and reading memory. Every operand is 1, so a result
// says how many products or values there were.
namespace {

// A tile of sums, each of its own pair of operands: enough of them to hide the latency of an instruction behind others.
constexpr int PROBE_ROWS = MOST_SUMS > 4 ? 4 : MOST_SUMS > 1 ? 2 : 1;
constexpr int PROBE_COLUMNS = MOST_SUMS > 4 ? 3 : MOST_SUMS > 1 ? 2 : 1;
constexpr int STREAMS = 4;
constexpr int64_t AHEAD = 512;  // values, two KiB

#define EACH_PROBE_ROW _Pragma("GCC unroll 4") for (int r = 0; r < PROBE_ROWS; ++r)
#define EACH_PROBE_COLUMN _Pragma("GCC unroll 3") for (int c = 0; c < PROBE_COLUMNS; ++c)

double sum_of(F32x16 x) {
  float lanes[LANES];
  store(lanes, x);
  double sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// For all the compiler knows, memory changes: what does not change in a loop it would compute only once.
inline void forget_memory() { asm volatile("" ::: "memory"); }

double integer_dots(const ProbeOperands& p) {
  I32x16 sums[PROBE_ROWS][PROBE_COLUMNS];
  EACH_PROBE_ROW EACH_PROBE_COLUMN sums[r][c] = iset1(0);
  for (int64_t round = 0; round < ProbeOperands::ROUNDS; round += ProbeOperands::LINES) {
    forget_memory();
    UNROLL for (int line = 0; line < ProbeOperands::LINES; ++line) {
      EACH_PROBE_ROW {
        const U8x64 bytes = load_bytes(p.bytes[line][r]);
        EACH_PROBE_COLUMN sums[r][c] = dot(sums[r][c], bytes, p.quads[c]);
      }
    }
  }
  double products = 0;
  EACH_PROBE_ROW EACH_PROBE_COLUMN products += sum_of(to_f32(sums[r][c]));
  return products;
}

double float_dots(const ProbeOperands& p) {
  F32x16 sums[PROBE_ROWS][PROBE_COLUMNS];
  EACH_PROBE_ROW EACH_PROBE_COLUMN sums[r][c] = set1(0);
  for (int64_t round = 0; round < ProbeOperands::ROUNDS; round += ProbeOperands::LINES) {
    forget_memory();
    UNROLL for (int line = 0; line < ProbeOperands::LINES; ++line) {
      EACH_PROBE_ROW {
        const F32x16 values = load(p.values[line][r]);
        EACH_PROBE_COLUMN sums[r][c] = fma(values, set1(p.factors[c]), sums[r][c]);
      }
    }
  }
  double products = 0;
  EACH_PROBE_ROW EACH_PROBE_COLUMN products += sum_of(sums[r][c]);
  return products;
}

// The sum of x (n,). Several streams keep more cache lines on their way than one.
double read_values(const float* x, int64_t n) {
  const int64_t length = n / STREAMS / LANES * LANES;
  F32x16 sums[STREAMS];
  for (F32x16& sum : sums) sum = set1(0);
  for (int64_t i = 0; i < length; i += LANES)
    for (int s = 0; s < STREAMS; ++s) {
      prefetch(x + s * length + i + AHEAD);
      sums[s] = add(sums[s], load(x + s * length + i));
    }
  double sum = 0;
  for (const F32x16& part : sums) sum += sum_of(part);
  for (int64_t i = STREAMS * length; i < n; ++i) sum += x[i];
  return sum;
}

}  // namespace
