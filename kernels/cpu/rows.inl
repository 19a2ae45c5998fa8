// Operations on rows: norm, activation, residual, rope, softmax.

namespace {

using namespace tinycluster;

// Sum of squares in 16 lanes (column i in lane i mod 16) and a fixed tree.
void rms_norm(const float* x, const float* weight, float eps, int64_t dim, float* out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* in = x + row * dim;
    F32x16 squares = set1(0.0f);
    for (int64_t i = 0; i < dim; i += LANES) {
      const F32x16 v = load_first(in + i, int(dim - i));
      squares = fma(v, v, squares);
    }
    const float inverse = 1.0f / std::sqrt(add_lanes(squares) / float(dim) + eps);
    for (int64_t i = 0; i < dim; i += LANES) {
      const int n = int(dim - i);
      const F32x16 y = mul(mul(load_first(in + i, n), set1(inverse)), load_first(weight + i, n));
      store_first(out + row * dim + i, y, n);
    }
  }
}

// gate / (1 + exp(-gate)) * up
inline F32x16 swiglu(F32x16 gate, F32x16 up) { return mul(div(gate, add(set1(1.0f), exp(sub(set1(0.0f), gate)))), up); }

void swiglu(const float* gate, const float* up, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += LANES) {
    const int n = int(end - i);
    store_first(out + i, swiglu(load_first(gate + i, n), load_first(up + i, n)), n);
  }
}

// x += float(fixed) + bias for the first n of 16 columns.
inline void add_to_residual(float* x, const int64_t* fixed, const float* bias, int n) {
  F32x16 delta = load_fixed(fixed);
  if (bias) delta = add(delta, load_first(bias, n));
  store_first(x, add(load_first(x, n), delta), n);
}

void add_fixed(float* x, const int64_t* fixed, const float* bias, int64_t dim, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* out = x + row * dim;
    const int64_t* sums = fixed + row * dim;
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) add_to_residual(out + i, sums + i, bias ? bias + i : nullptr, LANES);
    if (i == dim) continue;
    int64_t last[LANES] = {};
    std::memcpy(last, sums + i, (dim - i) * sizeof(int64_t));
    add_to_residual(out + i, last, bias ? bias + i : nullptr, int(dim - i));
  }
}

// Halves convention: column i of a head turns with column i + C / 2.
void rope(float* x, const float* cos, const float* sin, const int32_t* positions, int64_t heads, int64_t head_dim,
          int64_t begin, int64_t end) {
  const int64_t half = head_dim / 2;
  for (int64_t t = begin; t < end; ++t) {
    const float *c = cos + positions[t] * half, *s = sin + positions[t] * half;
    for (int64_t h = 0; h < heads; ++h) {
      float *low = x + (t * heads + h) * head_dim, *high = low + half;
      for (int64_t i = 0; i < half; i += LANES) {
        const int n = int(half - i);
        const F32x16 a = load_first(low + i, n), b = load_first(high + i, n);
        const F32x16 cosine = load_first(c + i, n), sine = load_first(s + i, n);
        store_first(low + i, fma(a, cosine, sub(set1(0.0f), mul(b, sine))), n);
        store_first(high + i, fma(b, cosine, mul(a, sine)), n);
      }
    }
  }
}

// exp(x - max) / sum, the sum in 16 lanes and a fixed tree.
void softmax(const float* x, float* out, int64_t size) {
  const float lowest = -3.402823466e38f;
  F32x16 most = set1(lowest);
  for (int64_t i = 0; i < size; i += LANES) {
    const int n = int(size - i) < LANES ? int(size - i) : LANES;
    most = max(most, keep_lanes(load_first(x + i, n), 0, n, set1(lowest)));
  }
  const F32x16 shift = set1(max_lanes(most));
  F32x16 total = set1(0.0f);
  for (int64_t i = 0; i < size; i += LANES) {
    const int n = int(size - i) < LANES ? int(size - i) : LANES;
    const F32x16 e = keep_lanes(exp(sub(load_first(x + i, n), shift)), 0, n, set1(0.0f));
    total = add(total, e);
    store_first(out + i, e, n);
  }
  const F32x16 sum = set1(add_lanes(total));
  for (int64_t i = 0; i < size; i += LANES) {
    const int n = int(size - i);
    store_first(out + i, div(load_first(out + i, n), sum), n);
  }
}

}  // namespace
