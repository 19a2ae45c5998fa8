// One row's next token: largest logit, or a draw after min_p, top_k and top_p. Nothing is sorted: what cannot be chosen
// is left behind in passes over whole vectors, and a bound is found among the few that remain.
//
// A weight is an integer, so sums of weights (masses) have no order.
#include "select.h"

namespace {

using namespace tinycluster;

constexpr float WEIGHT_ONE = 0x1p50f;
constexpr float INFINITE = __builtin_inff();
// Below it a weight is 0 whatever the sum of the exponentials, which is at least 1; dividing it could be slow.
constexpr float SMALLEST_EXPONENTIAL = 0x1p-60f;

inline int64_t weight_of(float p) { return int64_t(p * WEIGHT_ONE); }
inline I64x16 weights_of(F32x16 p) { return truncate(mul(p, set1(WEIGHT_ONE))); }
inline uint32_t first_lanes(int64_t n) { return n >= LANES ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1; }
inline float next_above(float x) { return __builtin_nextafterf(x, INFINITE); }

// The first n lanes from memory, -inf in the rest.
inline F32x16 load_logits(const float* p, int64_t n) {
  return n >= LANES ? load(p) : keep_lanes(load_first(p, int(n)), 0, int(n), set1(-INFINITE));
}

struct Peak {
  float value;
  int64_t chunk;   // where the chunk of its first occurrence begins
  bool is_finite;  // and no logit is NaN
};

Peak find_peak(const float* logits, int64_t V) {
  Peak peak = {-INFINITE, 0, true};
  uint32_t not_numbers = 0;
  for (int64_t begin = 0; begin < V; begin += SAMPLE_CHUNK) {
    const int64_t end = V - begin < SAMPLE_CHUNK ? V : begin + SAMPLE_CHUNK;
    F32x16 even = set1(-INFINITE), odd = even;
    for (int64_t i = begin; i < end; i += 2 * LANES) {
      const F32x16 a = load_logits(logits + i, end - i);
      const F32x16 b = i + LANES < end ? load_logits(logits + i + LANES, end - i - LANES) : a;
      not_numbers |= bits(unordered(a, b));
      even = max(even, a);
      odd = max(odd, b);
    }
    const float most = max_lanes(max(even, odd));
    if (most > peak.value) peak.value = most, peak.chunk = begin;
  }
  peak.is_finite = !not_numbers && __builtin_isfinite(peak.value);
  return peak;
}

// The tokens that are left, in ascending order of id, padded to whole vectors with tokens of -inf and weight 0.
struct Tokens {
  float* x;      // logit / temperature
  float* p;      // exp(x - max), then that divided by the sum over the vocabulary
  int32_t* ids;  // unused while no token has been left behind
  int64_t n;
  bool has_ids;
};

// Fills x and p. The sum of the exponentials, in 16 lanes and a fixed tree as in `softmax`.
float exponentials(const SampleArgs& args, float shift, const Tokens& tokens) {
  F32x16 total = set1(0.0f);
  for (int64_t i = 0; i < args.V; i += LANES) {
    const F32x16 x = div(load_logits(args.logits + i, args.V - i), set1(float(args.temperature)));
    const F32x16 e = exp(sub(x, set1(shift)));
    total = add(total, e);
    store(tokens.x + i, x);
    store(tokens.p + i, e);
  }
  return add_lanes(total);
}

// Of the tokens with the key `bound`, only those up to index `last` stay; larger ones stay, smaller ones go.
void keep(Tokens& tokens, const float* key, float bound, int64_t last) {
  const F32x16 low = set1(bound), high = set1(next_above(bound));
  int64_t kept = 0;
  for (int64_t i = 0; i < tokens.n; i += LANES) {
    const F32x16 k = load(key + i);
    uint32_t chosen = bits(at_least(k, low)) & first_lanes(tokens.n - i);
    if (i + LANES > last + 1) chosen &= bits(at_least(k, high)) | first_lanes(last + 1 - i);
    if (!chosen) continue;
    const F32x16 x = load(tokens.x + i), p = load(tokens.p + i);
    const I32x16 ids = tokens.has_ids ? load_int(tokens.ids + i) : count_from(int32_t(i));
    store_chosen(tokens.x + kept, x, chosen);
    store_chosen(tokens.p + kept, p, chosen);
    store_chosen(tokens.ids + kept, ids, chosen);
    kept += __builtin_popcount(chosen);
  }
  store(tokens.x + kept, set1(-INFINITE));
  store(tokens.p + kept, set1(0.0f));
  tokens.n = kept;
  tokens.has_ids = true;
}

void keep_at_least(Tokens& tokens, const float* key, float bound) { keep(tokens, key, bound, tokens.n); }

// The index of the count-th token whose x is `value`.
int64_t find_tie(const Tokens& tokens, float value, int64_t count) {
  for (int64_t i = 0;; i += LANES) {
    const F32x16 x = load(tokens.x + i);
    uint32_t ties = bits(at_least(x, set1(value))) & bits(at_least(set1(value), x));
    if (__builtin_popcount(ties) < count) {
      count -= __builtin_popcount(ties);
      continue;
    }
    for (; count > 1; --count) ties &= ties - 1;
    return i + __builtin_ctz(ties);
  }
}

// The smallest exponential whose weight reaches min_p of the largest weight, which is that of exp(0) = 1.
float min_p_bound(double min_p, float sum) {
  const int64_t wanted = int64_t(__builtin_ceil(min_p * double(weight_of(1.0f / sum))));
  float e = float(wanted) / WEIGHT_ONE * sum;
  while (weight_of(e / sum) >= wanted) e = __builtin_nextafterf(e, -1.0f);
  while (weight_of(e / sum) < wanted) e = __builtin_nextafterf(e, 2.0f);
  return e;
}

// A value that at least k tokens reach, and few more: the k-th largest of the maxima of parts of the tokens.
float bar_of(const Tokens& tokens, int64_t k, float* spare) {
  const int64_t wanted_parts = 4 * k < 256 ? 256 : 4 * k;
  const int64_t groups = (wanted_parts + LANES - 1) / LANES, per_group = tokens.n / LANES / groups;
  if (per_group < 2) return -INFINITE;
  for (int64_t g = 0; g < groups; ++g) {
    const float* x = tokens.x + g * per_group * LANES;
    F32x16 most = load(x);
    for (int64_t i = 1; i < per_group; ++i) most = max(most, load(x + i * LANES));
    store(spare + g * LANES, most);
  }
  return kth_largest(spare, groups * LANES, k);
}

void keep_top_k(Tokens& tokens, int64_t k, float* spare) {
  if (k >= tokens.n) return;
  keep_at_least(tokens, tokens.x, bar_of(tokens, k, spare));
  std::memcpy(spare, tokens.x, tokens.n * sizeof(float));
  const float bound = kth_largest(spare, tokens.n, k);
  int64_t num_larger = 0;
  for (int64_t i = 0; i < tokens.n; i += LANES)
    num_larger += __builtin_popcount(bits(at_least(load(tokens.x + i), set1(next_above(bound)))));
  keep(tokens, tokens.x, bound, find_tie(tokens, bound, k - num_larger));
}

// Turns exponentials into probabilities.
void divide(const Tokens& tokens, float sum) {
  for (int64_t i = 0; i < tokens.n; i += LANES) {
    const F32x16 e = load(tokens.p + i);
    store(tokens.p + i, div(zero_where_less(e, set1(SMALLEST_EXPONENTIAL), e), set1(sum)));
  }
}

// The mass of every chunk, and of all.
int64_t weigh(const Tokens& tokens, int64_t* masses) {
  int64_t total = 0;
  for (int64_t begin = 0; begin < tokens.n; begin += SAMPLE_CHUNK) {
    const int64_t end = tokens.n - begin < SAMPLE_CHUNK ? tokens.n : begin + SAMPLE_CHUNK;
    I64x16 mass = no_sum();
    for (int64_t i = begin; i < end; i += LANES) mass = add(mass, weights_of(load(tokens.p + i)));
    total += masses[begin / SAMPLE_CHUNK] = add_lanes(mass);
  }
  return total;
}

// The search for the value at which the largest tokens reach a mass: it lies in [low, high], which are values of
// tokens, `above` is the mass beyond high, and x, p (n,) are the tokens between.
struct Search {
  float *x, *p;
  int64_t n;
  float low, high;
  int64_t above;
};

// Copies the tokens of [low, high] to the search; x and p may be the search's own.
void narrow(Search& search, const float* x, const float* p, int64_t n, float low, float high) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; i += LANES) {
    const F32x16 values = load(x + i), probabilities = load(p + i);
    const uint32_t chosen = bits(at_least(values, set1(low))) & bits(at_least(set1(high), values)) & first_lanes(n - i);
    store_chosen(search.x + kept, values, chosen);
    store_chosen(search.p + kept, probabilities, chosen);
    kept += __builtin_popcount(chosen);
  }
  search.n = kept;
  store(search.x + kept, set1(search.x[0]));
  store(search.p + kept, set1(0.0f));
  F32x16 least = load(search.x), most = least;
  for (int64_t i = LANES; i < kept; i += LANES) {
    least = min(least, load(search.x + i));
    most = max(most, load(search.x + i));
  }
  search.low = -max_lanes(sub(set1(0.0f), least));
  search.high = max_lanes(most);
}

// Cuts [low, high] in four and keeps the part that holds the value.
void quarter(Search& search, int64_t wanted) {
  constexpr int CUTS = 3;
  float cuts[CUTS + 2] = {search.low, 0, 0, 0, next_above(search.high)};
  const float width = search.high - search.low;
  for (int j = 1; j <= CUTS; ++j) {
    const float cut = search.low + width * (0.25f * float(j));
    cuts[j] = cut > search.low ? cut : next_above(search.low);
  }
  I64x16 sums[CUTS] = {no_sum(), no_sum(), no_sum()};
  for (int64_t i = 0; i < search.n; i += LANES) {
    const F32x16 x = load(search.x + i);
    const I64x16 weights = weights_of(load(search.p + i));
    for (int j = 0; j < CUTS; ++j) sums[j] = add_where(sums[j], at_least(x, set1(cuts[j + 1])), weights);
  }
  int part = CUTS;
  int64_t beyond = 0;
  for (; part > 0; --part) {
    const int64_t mass = add_lanes(sums[part - 1]);
    if (search.above + mass >= wanted) break;
    beyond = mass;
  }
  search.above += beyond;
  narrow(search, search.x, search.p, search.n, cuts[part], __builtin_nextafterf(cuts[part + 1], -INFINITE));
}

// The fewest tokens, largest first, that hold top_p of the mass `total`.
void keep_top_p(Tokens& tokens, double top_p, int64_t total, float sum, float shift, const SampleScratch& scratch) {
  const int64_t wanted = int64_t(__builtin_ceil(top_p * double(total)));
  // Tokens of at most this weight can all go: together they have no more than the mass that may go. Their x is below
  // `floor`, which is lowered by more than exp and log are wrong.
  const int64_t lightest = (total - wanted) / tokens.n + 1;
  const float floor = shift + (__builtin_logf(float(lightest) / WEIGHT_ONE * sum) - 0.01f);
  keep_at_least(tokens, tokens.x, floor);
  Search search = {scratch.spare_x, scratch.spare_p, 0, floor, shift, 0};
  narrow(search, tokens.x, tokens.p, tokens.n, floor, shift);
  while (search.low < search.high) quarter(search, wanted);
  const int64_t weight = weight_of(search.p[0]);
  const int64_t num_ties = (wanted - search.above + weight - 1) / weight;
  keep(tokens, tokens.x, search.low, find_tie(tokens, search.low, num_ties));
}

// The token at which the cumulative weight passes `point`, which is below the sum of the masses.
int64_t find_token(const Tokens& tokens, const int64_t* masses, int64_t point) {
  int64_t i = 0;
  for (; point >= *masses; ++masses, i += SAMPLE_CHUNK) point -= *masses;
  for (; point >= weight_of(tokens.p[i]); ++i) point -= weight_of(tokens.p[i]);
  return tokens.has_ids ? tokens.ids[i] : i;
}

int64_t draw(const SampleArgs& args, float shift, const SampleScratch& scratch) {
  Tokens tokens = {scratch.x, scratch.p, scratch.ids, args.V, false};
  const float sum = exponentials(args, shift, tokens);
  if (args.min_p > 0) keep_at_least(tokens, tokens.p, min_p_bound(args.min_p, sum));
  if (args.top_k > 0) keep_top_k(tokens, args.top_k, scratch.spare_x);
  divide(tokens, sum);
  int64_t total = weigh(tokens, scratch.masses);
  if (args.top_p < 1) {
    keep_top_p(tokens, args.top_p, total, sum, shift, scratch);
    total = weigh(tokens, scratch.masses);
  }
  // floor(u * total) for u = random_bits / 2^64, exact in integers (Lemire 2019, section 3).
  const auto product = static_cast<unsigned __int128>(args.random_bits) * uint64_t(total);
  return find_token(tokens, scratch.masses, int64_t(product >> 64));
}

bool sample(const SampleArgs& args, const SampleScratch& scratch, int64_t* token) {
  const Peak peak = find_peak(args.logits, args.V);
  if (!peak.is_finite) return false;
  if (args.temperature < GREEDY_BELOW) {
    *token = peak.chunk;
    while (args.logits[*token] != peak.value) ++*token;
    return true;
  }
  const float shift = peak.value / float(args.temperature);
  if (!__builtin_isfinite(shift)) return false;
  *token = draw(args, shift, scratch);
  return true;
}

}  // namespace
