// One row's log-probabilities: of a token, and of the most likely ones; its place among all.
// kernels/logprobs_reference.py has the definition.

namespace {

using namespace tinycluster;

// ln x for finite x > 0: x = m * 2^e with m near 1, and ln m = 2 atanh((m - 1) / (m + 1)) as a series of 12 terms.
double natural_log(double x) {
  int e;
  double m = __builtin_frexp(x, &e);
  if (m < 0.7071067811865476) m *= 2, --e;
  const double s = (m - 1) / (m + 1), square = s * s;
  double total = 0;
  for (int term = 11; term >= 0; --term) total = total * square + 1.0 / (2 * term + 1);
  return e * 0.6931471805599453 + 2 * s * total;
}

// The largest values so far, largest first; of equal ones the first that came. What is at least `bar` comes among them.
struct Best {
  int32_t* ids;
  float* values;
  int64_t most, n;
  float bar;

  void insert(int32_t id, float value) {
    int64_t i = n < most ? n++ : n - 1;
    for (; i > 0 && values[i - 1] < value; --i) values[i] = values[i - 1], ids[i] = ids[i - 1];
    values[i] = value;
    ids[i] = id;
    if (n == most) bar = next_above(values[n - 1]);
  }
};

// What is learned in one pass over a row.
struct Learned {
  F32x16 total;  // of exp(x - largest)
  int64_t rank;
  Best best;
};

// Where the token stands: after what is at least `above`, and of those at least `equal` after the lower ids.
struct Place {
  int64_t token;
  F32x16 equal, above;
};

void note(Learned& learned, const LogprobArgs& args, const Place& place, F32x16 x, int64_t first) {
  const uint32_t present = first_lanes(args.V - first);
  const uint32_t before =
      bits(at_least(x, place.above)) | (bits(at_least(x, place.equal)) & first_lanes(place.token - first));
  learned.rank += __builtin_popcount(before & present);
  uint32_t chosen = bits(at_least(x, set1(learned.best.bar))) & present;
  for (; chosen; chosen &= chosen - 1) {
    const int64_t id = first + __builtin_ctz(chosen);
    if (args.logits[id] >= learned.best.bar) learned.best.insert(int32_t(id), args.logits[id]);
  }
}

// N vectors at once: an exponential alone waits for its own last step most of the time.
template <int N>
INLINE void read(Learned& learned, const LogprobArgs& args, const Place& place, F32x16 peak, int64_t first) {
  F32x16 x[N], e[N];
  UNROLL for (int i = 0; i < N; ++i) {
    x[i] = load_logits(args.logits + first + i * LANES, args.V - first - i * LANES);
    e[i] = sub(x[i], peak);
  }
  exp(e);
  UNROLL for (int i = 0; i < N; ++i) learned.total = add(learned.total, e[i]);
  UNROLL for (int i = 0; i < N; ++i) note(learned, args, place, x[i], first + i * LANES);
}

bool logprobs(const LogprobArgs& args) {
  constexpr int MOST = 4;
  const Peak peak = find_peak(args.logits, args.V);
  if (!peak.is_finite) return false;
  const float token_logit = args.logits[args.token];
  const Place place = {args.token, set1(token_logit), set1(next_above(token_logit))};
  const float lowest = args.num_top ? -INFINITE : INFINITE;
  Learned learned = {set1(0.0f), 1, {args.top_ids, args.top_logprobs, args.num_top, 0, lowest}};
  int64_t i = 0;
  for (; i + MOST * LANES <= args.V; i += MOST * LANES) read<MOST>(learned, args, place, set1(peak.value), i);
  for (; i < args.V; i += LANES) read<1>(learned, args, place, set1(peak.value), i);
  const double log_sum = natural_log(add_lanes(learned.total));
  const auto logprob = [&](float x) { return float((double(x) - double(peak.value)) - log_sum); };
  *args.logprob = logprob(token_logit);
  *args.rank = int32_t(learned.rank);
  for (int64_t t = 0; t < args.num_top; ++t) args.top_logprobs[t] = logprob(args.top_logprobs[t]);
  return true;
}

}  // namespace
