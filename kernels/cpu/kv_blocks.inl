// Two ways to read a block of 64 positions: where its tiles lie in the cache, or as float32 that many rows share.

namespace {

using namespace tinycluster;

constexpr int BLOCK_TILES = BLOCK / KV_TILE;

// 64 positions of one request and KV head, wherever the tiles lie.
struct KVBlock {
  const uint8_t* k[BLOCK_TILES];
  const uint8_t* v[BLOCK_TILES];
};

// Tiles behind the last position are those of the first, so that reading them is harmless.
KVBlock find_block(const KVCache& cache, const int32_t* table, int64_t kv_head, int64_t start, int64_t last) {
  KVBlock block;
  for (int v = 0; v < BLOCK_TILES; ++v) {
    const int64_t position = start + v * KV_TILE;
    const int64_t tile = cache.tile(table, kv_head, position <= last ? position : start);
    block.k[v] = cache.keys + tile * cache.key_tile_bytes();
    block.v[v] = cache.values + tile * cache.value_tile_bytes();
  }
  return block;
}

// Reads the codes of a block for the few rows that need them, and asks for those of the next one.
template <class Codes>
struct StoredBlock {
  const KVBlock &block, &next;
  int64_t C, padded_C;

  static constexpr int64_t KEY_RUN = KV_GROUP;  // columns that share a key's scale
  F32x16 key_scale(int tile, int64_t c) const { return KeyTile<Codes>::scale(block.k[tile], C, c); }
  F32x16 keys(int tile, int64_t c, F32x16 scale) const {
    KeyTile<Codes>::prefetch_codes(next.k[tile], c);
    return KeyTile<Codes>::read(block.k[tile], c, scale);
  }
  static constexpr int VALUE_RUN = KV_TILE;  // positions whose values lie one behind the other
  ValueRows<Codes> values(int j, int64_t c) const {
    return {block.v[j / KV_TILE], next.v[j / KV_TILE], padded_C, j % KV_TILE, c};
  }
};

// Keys or values of a block as float32: one after the other, so that both fit the first-level cache.
struct WideBlock {
  alignas(64) float numbers[BLOCK * MOST_HEAD_DIM];  // keys (tiles, C, 16), values (64, padded C)
  int64_t C, padded_C;

  static constexpr int64_t KEY_RUN = MOST_HEAD_DIM;
  F32x16 key_scale(int, int64_t) const { return F32x16(); }
  F32x16 keys(int tile, int64_t c, F32x16) const { return load(numbers + (tile * C + c) * LANES); }

  struct Values {
    const float* x;
    int64_t padded_C;
    F32x16 read(int vector) const { return load(x + vector * LANES); }
    void step() { x += padded_C; }
  };
  static constexpr int VALUE_RUN = BLOCK;
  Values values(int j, int64_t c) const { return {numbers + j * padded_C + c, padded_C}; }

  template <class Codes>
  void unpack_keys(const KVBlock& block, int num_positions) {
    for (int i = 0; i * KV_TILE < num_positions; ++i)
      for (int64_t c = 0; c < C; c += KV_GROUP) {
        const F32x16 scale = KeyTile<Codes>::scale(block.k[i], C, c);
        for (int64_t g = c; g < std::min<int64_t>(c + KV_GROUP, C); ++g)
          store(numbers + (i * C + g) * LANES, KeyTile<Codes>::read(block.k[i], g, scale));
      }
  }
  template <class Codes>
  void unpack_values(const KVBlock& block, int num_positions) {
    for (int j = 0; j < num_positions; ++j)
      for (int64_t c = 0; c < padded_C; c += LANES) {
        const ValueRows<Codes> values(block.v[j / KV_TILE], block.v[j / KV_TILE], padded_C, j % KV_TILE, c);
        store(numbers + j * padded_C + c, values.read(0));
      }
  }
};

}  // namespace
