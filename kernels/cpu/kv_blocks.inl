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

// Column after column of the keys of V tiles where they lie. To read is to ask for those of the next block, to peek
// not.
template <class Codes, int V>
struct StoredKeys {
  const uint8_t *tiles[V], *next_tiles[V];
  F32x16 scales[V];
  int64_t c;

  F32x16 read(int v) const {
    KeyTile<Codes>::prefetch_codes(next_tiles[v], c);
    return peek(v);
  }
  F32x16 peek(int v) const { return KeyTile<Codes>::read(tiles[v], c, scales[v]); }
  void step() { ++c; }
};

// Reads the codes of a block for the few rows that need them, and asks for those of the next one.
template <class Codes>
struct StoredBlock {
  const KVBlock &block, &next;
  int64_t C, padded_C;

  static constexpr int64_t KEY_RUN = KV_GROUP;  // columns that share a key's scale
  template <int V>
  StoredKeys<Codes, V> keys(int tile, int64_t c) const {
    StoredKeys<Codes, V> keys;
    for (int v = 0; v < V; ++v) {
      keys.tiles[v] = block.k[tile + v], keys.next_tiles[v] = next.k[tile + v];
      keys.scales[v] = KeyTile<Codes>::scale(block.k[tile + v], C, c);
    }
    keys.c = c;
    return keys;
  }
  static constexpr int VALUE_RUN = KV_TILE;  // positions whose values lie one behind the other
  template <int V>
  ValueRows<Codes> values(int j, int64_t c) const {
    return {block.v[j / KV_TILE], next.v[j / KV_TILE], padded_C, j % KV_TILE, c};
  }
};

// Keys or values of a block as float32: one after the other, so that both fit the first-level cache. Meanwhile the
// codes of the next block are on their way, a line at a time among arithmetic that hides how long it takes.
struct WideBlock {
  alignas(64) float numbers[BLOCK * MOST_HEAD_DIM];  // keys (C, 64) or values (64, padded C)
  int64_t C, padded_C;
  const uint8_t* ahead;         // a tile of the next block
  int64_t ahead_bytes;          // of one of its columns
  int64_t from_ahead_to_other;  // bytes to another such tile, or 0

  // Each of the first groups of rows asks for another tile or, where they are few, for two.
  void look_ahead(const uint8_t* const* tiles, int64_t column_bytes, int group, int num_groups) {
    const bool is_done = group >= BLOCK_TILES;
    ahead = tiles[is_done ? 0 : group], ahead_bytes = is_done ? 0 : column_bytes;
    from_ahead_to_other = num_groups < BLOCK_TILES ? tiles[(group + 2) % BLOCK_TILES] - ahead : 0;
  }

  struct Numbers {
    float* x;
    int64_t width;
    const uint8_t* ahead;
    int64_t ahead_bytes, from_ahead_to_other;

    F32x16 read(int vector) const { return load(x + vector * LANES); }
    void step() {
      prefetch(ahead);
      if (from_ahead_to_other) prefetch(ahead + from_ahead_to_other);
      ahead += ahead_bytes, x += width;
    }
  };
  static constexpr int64_t KEY_RUN = MOST_HEAD_DIM;
  template <int V>
  Numbers keys(int tile, int64_t c) {
    return {numbers + c * BLOCK + tile * LANES, BLOCK, ahead + c * ahead_bytes, ahead_bytes, from_ahead_to_other};
  }
  static constexpr int VALUE_RUN = BLOCK;
  // The 64 positions ask for as many columns of a tile as are read.
  template <int V>
  Numbers values(int j, int64_t c) {
    const int64_t bytes = ahead_bytes * V * LANES / BLOCK;
    return {numbers + j * padded_C + c, padded_C, ahead + c * ahead_bytes + j * bytes, bytes, from_ahead_to_other};
  }

  template <class Codes>
  void unpack_keys(const KVBlock& block, int num_positions) {
    const int64_t run = Codes::HAS_SCALES ? KV_GROUP : C;
    for (int i = 0; i * KV_TILE < num_positions; ++i)
      for (int64_t c = 0; c < C; c += run)
        widen<Codes>(KeyTile<Codes>::codes(block.k[i]) + c * KV_TILE, std::min(run, C - c),
                     KeyTile<Codes>::scale(block.k[i], C, c), numbers + c * BLOCK + i * LANES, BLOCK);
  }
  template <class Codes>
  void unpack_values(const KVBlock& block, int num_positions) {
    for (int i = 0; i * KV_TILE < num_positions; ++i) {
      float* const to = numbers + i * KV_TILE * padded_C;
      if constexpr (Codes::HAS_SCALES) {
        ValueRows<Codes> values(block.v[i], block.v[i], padded_C, 0, 0);
        for (int j = 0; j < KV_TILE; ++j, values.step())
          UNROLL for (int v = 0; v < padded_C / LANES; ++v) store(to + j * padded_C + v * LANES, values.peek(v));
      } else {
        widen<Codes>(ValueTile<Codes>::codes(block.v[i]), padded_C, F32x16(), to, LANES);
      }
    }
  }

 private:
  template <class Codes>
  static void widen(const typename Codes::Code* codes, int64_t vectors, F32x16 scale, float* to, int64_t step) {
    UNROLL for (int64_t i = 0; i < vectors; ++i) store(to + i * step, Codes::read(codes + i * LANES, scale));
  }
};

// Reads the codes of a block for some rows and leaves their numbers to those that read the wide one.
template <class Codes>
struct OpenedBlock {
  const StoredBlock<Codes>& stored;
  WideBlock& wide;

  template <class Stored>
  struct Opened {
    Stored codes;
    WideBlock::Numbers numbers;

    F32x16 read(int vector) const {
      const F32x16 x = codes.peek(vector);
      store(numbers.x + vector * LANES, x);
      return x;
    }
    void step() { codes.step(), numbers.step(); }
  };
  static constexpr int64_t KEY_RUN = StoredBlock<Codes>::KEY_RUN;
  template <int V>
  Opened<StoredKeys<Codes, V>> keys(int tile, int64_t c) const {
    return {stored.template keys<V>(tile, c), wide.template keys<V>(tile, c)};
  }
  static constexpr int VALUE_RUN = StoredBlock<Codes>::VALUE_RUN;
  template <int V>
  Opened<ValueRows<Codes>> values(int j, int64_t c) const {
    return {stored.template values<V>(j, c), wide.template values<V>(j, c)};
  }
};

}  // namespace
