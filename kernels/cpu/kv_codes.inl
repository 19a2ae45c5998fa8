// How keys and values are stored: what a cache's format does to 16 numbers, and how a step's rows get into its tiles.

namespace {

using namespace tinycluster;

constexpr int MOST_HEAD_DIM = 256;
static_assert(KV_TILE == LANES && KV_GROUP == 2 * LANES);

struct F32Codes {
  using Code = float;
  static constexpr bool HAS_SCALES = false;
  static F32x16 read(const Code* codes, F32x16) { return load(codes); }
  static void round(const float* x, int64_t n, Code* codes, float*) {
    std::memcpy(codes, x, size_t(n) * sizeof(float));
  }
};

struct Bf16Codes {
  using Code = uint16_t;
  static constexpr bool HAS_SCALES = false;
  static F32x16 read(const Code* codes, F32x16) { return load_bf16(codes); }
  // To nearest, ties to even; NaN stays NaN.
  static void round(const float* x, int64_t n, Code* codes, float*) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = uint32_t(bits_of(x[i]));
      codes[i] = x[i] == x[i] ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
    }
  }
};

struct Q8Codes {
  using Code = int8_t;
  static constexpr bool HAS_SCALES = true;
  static F32x16 read(const Code* codes, F32x16 scale) { return mul(load_i8(codes), scale); }
  // A group with a number that is not finite reads as NaN.
  static void round(const float* x, int64_t n, Code* codes, float* scales) {
    for (int64_t g = 0; g * KV_GROUP < n; ++g, x += KV_GROUP, codes += KV_GROUP) {
      const int count = n - g * KV_GROUP < KV_GROUP ? int(n - g * KV_GROUP) : KV_GROUP;
      const RoundedGroup group = round_group(x, count, 127.0f);
      int8_t bytes[KV_GROUP];
      for (int half = 0; half < 2; ++half) store_bytes(bytes + half * LANES, group.codes[half]);
      std::memcpy(codes, bytes, size_t(count));
      scales[g] = group.scale;
    }
  }
};

// One tile: the codes of 16 positions, then their scales where the format has some.
template <class Codes>
struct KeyTile {  // codes (C, 16), scales (groups, 16)
  using Code = typename Codes::Code;
  static F32x16 scale(const uint8_t* tile, int64_t C, int64_t c) {
    if constexpr (!Codes::HAS_SCALES) return F32x16();
    return load(reinterpret_cast<const float*>(tile + C * KV_TILE * sizeof(Code)) + c / KV_GROUP * KV_TILE);
  }
  static const Code* codes(const uint8_t* tile) { return reinterpret_cast<const Code*>(tile); }
  static F32x16 read(const uint8_t* tile, int64_t c, F32x16 scale) {
    return Codes::read(codes(tile) + c * KV_TILE, scale);
  }
  static void prefetch_codes(const uint8_t* tile, int64_t c) { prefetch(tile + c * KV_TILE * sizeof(Code)); }
  static void write(uint8_t* tile, int64_t C, int64_t position, const float* x) {
    Code codes[MOST_HEAD_DIM], *const to = reinterpret_cast<Code*>(tile) + position;
    float scales[MOST_HEAD_DIM / KV_GROUP], *const to_scales =
                                                reinterpret_cast<float*>(tile + C * KV_TILE * sizeof(Code)) + position;
    Codes::round(x, C, codes, scales);
    for (int64_t c = 0; c < C; ++c) to[c * KV_TILE] = codes[c];
    if constexpr (Codes::HAS_SCALES)
      for (int64_t g = 0; g * KV_GROUP < C; ++g) to_scales[g * KV_TILE] = scales[g];
  }
};

template <class Codes>
struct ValueTile {  // codes (16, padded C), scales (16, groups)
  using Code = typename Codes::Code;
  static int64_t groups(int64_t padded_C) { return (padded_C + KV_GROUP - 1) / KV_GROUP; }
  static const Code* codes(const uint8_t* tile) { return reinterpret_cast<const Code*>(tile); }
  static void write(uint8_t* tile, int64_t C, int64_t padded_C, int64_t position, const float* x) {
    Code* const codes = reinterpret_cast<Code*>(tile) + position * padded_C;
    float* const scales = reinterpret_cast<float*>(tile + padded_C * KV_TILE * sizeof(Code));
    Codes::round(x, C, codes, scales + position * groups(padded_C));
  }
};

// The values of one position after the other, from column c; c is a multiple of 32 where vector 1 is read too.
template <class Codes>
class ValueRows {
 public:
  using Code = typename Codes::Code;
  ValueRows(const uint8_t* tile, const uint8_t* next_tile, int64_t padded_C, int64_t position, int64_t c)
      : codes_(reinterpret_cast<const Code*>(tile) + position * padded_C + c),
        next_codes_(reinterpret_cast<const Code*>(next_tile) + position * padded_C + c),
        padded_C_(padded_C) {
    if constexpr (Codes::HAS_SCALES) {
      groups_ = ValueTile<Codes>::groups(padded_C);
      scales_ = reinterpret_cast<const float*>(tile + padded_C * KV_TILE) + position * groups_ + c / KV_GROUP;
    }
  }
  F32x16 read(int vector) const {
    if (vector * LANES * sizeof(Code) % 64 == 0) prefetch(next_codes_ + vector * LANES);
    return peek(vector);
  }
  F32x16 peek(int vector) const {
    F32x16 scale = {};
    if constexpr (Codes::HAS_SCALES) scale = set1(scales_[vector * LANES / KV_GROUP]);
    return Codes::read(codes_ + vector * LANES, scale);
  }
  void step() {
    codes_ += padded_C_, next_codes_ += padded_C_;
    if constexpr (Codes::HAS_SCALES) scales_ += groups_;
  }

 private:
  const Code *codes_, *next_codes_;
  int64_t padded_C_, groups_ = 0;
  const float* scales_ = nullptr;
};

template <class Codes>
void write_codes(const KVWriteArgs& a, int64_t begin, int64_t end) {
  const KVCache& cache = *a.cache;
  const int64_t C = cache.C;
  int64_t r = 0;
  for (int64_t t = begin; t < end; ++t) {
    while (a.step->row_start[r + 1] <= t) ++r;
    const int32_t* table = a.step->block_tables + r * a.step->block_table_stride;
    const int64_t position = a.step->positions[t], i = position % KV_TILE;
    for (int64_t h = 0; h < cache.KV; ++h) {
      const int64_t tile = cache.tile(table, h, position), x = (t * cache.KV + h) * C;
      KeyTile<Codes>::write(cache.keys + tile * cache.key_tile_bytes(), C, i, a.k + x);
      ValueTile<Codes>::write(cache.values + tile * cache.value_tile_bytes(), C, cache.padded_C(), i, a.v + x);
    }
  }
}

// Keys and values of the step's tokens [begin, end) into the cache.
void write_kv(const KVWriteArgs& a, int64_t begin, int64_t end) {
  switch (a.cache->format) {
    case KVFormat::f32:
      return write_codes<F32Codes>(a, begin, end);
    case KVFormat::bf16:
      return write_codes<Bf16Codes>(a, begin, end);
    case KVFormat::q8:
      return write_codes<Q8Codes>(a, begin, end);
  }
}

}  // namespace
