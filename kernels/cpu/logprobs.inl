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

// The largest values so far, largest first; of equal ones the first that came.
struct Best {
  int32_t* ids;
  float* values;
  int64_t most, n;

  // What is at least this comes among them.
  float bar() const { return n < most ? -INFINITE : most ? next_above(values[n - 1]) : INFINITE; }
  void insert(int32_t id, float value) {
    int64_t i = n < most ? n++ : n - 1;
    for (; i > 0 && values[i - 1] < value; --i) values[i] = values[i - 1], ids[i] = ids[i - 1];
    values[i] = value;
    ids[i] = id;
  }
};

void insert_all(Best& best, const float* logits, int64_t first, uint32_t chosen) {
  for (; chosen; chosen &= chosen - 1) {
    const int64_t id = first + __builtin_ctz(chosen);
    if (logits[id] >= best.bar()) best.insert(int32_t(id), logits[id]);
  }
}

bool logprobs(const LogprobArgs& args) {
  const Peak peak = find_peak(args.logits, args.V);
  if (!peak.is_finite) return false;
  const float token_logit = args.logits[args.token];
  const F32x16 shift = set1(peak.value), equal = set1(token_logit), above = set1(next_above(token_logit));
  F32x16 total = set1(0.0f);
  int64_t rank = 1;
  Best best = {args.top_ids, args.top_logprobs, args.num_top, 0};
  for (int64_t i = 0; i < args.V; i += LANES) {
    const F32x16 x = load_logits(args.logits + i, args.V - i);
    const uint32_t present = first_lanes(args.V - i);
    total = add(total, exp(sub(x, shift)));
    rank += __builtin_popcount(bits(at_least(x, above)) & present);
    // Lower ids come first.
    const uint32_t earlier = first_lanes(args.token - i) & present;
    rank += __builtin_popcount(bits(at_least(x, equal)) & ~bits(at_least(x, above)) & earlier);
    insert_all(best, args.logits, i, bits(at_least(x, set1(best.bar()))) & present);
  }
  const double log_sum = natural_log(add_lanes(total));
  const auto logprob = [&](float x) { return float((double(x) - double(peak.value)) - log_sum); };
  *args.logprob = logprob(token_logit);
  *args.rank = int32_t(rank);
  for (int64_t i = 0; i < args.num_top; ++i) args.top_logprobs[i] = logprob(args.top_logprobs[i]);
  return true;
}

}  // namespace
