// The two products of a gated MLP and its activation, 32 columns at a time: gate and up never reach memory.

namespace {

using namespace tinycluster;

// Two tiles of gate, then the same two of up.
constexpr int PAIRS = 4;

template <Format FORMAT, int BITS, int TB>
void gate_and_up(const GateUpArgs& a, int64_t group, int64_t token, bool is_streaming, F32x16 (*sums)[TB]) {
  constexpr int MOST = tiles_at_once<FORMAT, TB>(), NT = MOST > PAIRS ? PAIRS : MOST;
  const int64_t tile_bytes = a.gate.weight->tile_bytes, at = 2 * group * tile_bytes;
  const uint8_t *gate = a.gate.weight->values + at, *up = a.up.weight->values + at;
  const uint8_t* tiles[PAIRS] = {gate, gate + tile_bytes, up, up + tile_bytes};
  for (int first = 0; first < PAIRS; first += NT) {
    Tiles<NT> some;
    std::memcpy(some.at, tiles + first, sizeof some.at);
    Sums<NT, TB> part;
    part.clear();
    const Block<FORMAT, BITS, NT, TB> block(a.gate, some, token, is_streaming ? 2 * tile_bytes : 0);
    block.add(0, block.steps(), part);
    for (int n = 0; n < NT; ++n)
      for (int t = 0; t < TB; ++t) sums[first + n][t] = part.sum[n][t];
  }
}

template <Format FORMAT, int BITS, int TB>
void gate_up_block(const GateUpArgs& a, int64_t group, int64_t token, bool is_streaming) {
  F32x16 sums[PAIRS][TB];
  gate_and_up<FORMAT, BITS, TB>(a, group, token, is_streaming, sums);
  const int64_t column = group * GROUP;
  for (int t = 0; t < TB; ++t) {
    float activated[GROUP];
    for (int half = 0; half < 2; ++half) {
      const int64_t at = column + half * TILE;
      F32x16 gate = sums[half][t], up = sums[2 + half][t];
      if (a.gate.bias) gate = add(gate, load(a.gate.bias + at));
      if (a.up.bias) up = add(up, load(a.up.bias + at));
      store(activated + half * TILE, swiglu(gate, up));
    }
    if (a.out) {
      std::memcpy(a.out + (token + t) * a.gate.weight->N + column, activated, sizeof activated);
    } else {
      quantize_group(activated, GROUP, codes_record(a.out_codes, a.out_codes.block(token), group, TB), t);
    }
  }
}

template <Format FORMAT, int BITS>
void gate_up_format(const GateUpArgs& a, int64_t begin, int64_t end) {
  const int64_t T = a.gate.T, chunk = tokens_in_second_cache<FORMAT, CODE_BLOCK>(a.gate);
  for (int64_t start = 0; start < T; start += chunk) {
    const int64_t stop = start + chunk < T ? start + chunk : T;
    for (int64_t group = begin; group < end; ++group) {
      int64_t t = start;
      for (; t + CODE_BLOCK <= stop; t += CODE_BLOCK) gate_up_block<FORMAT, BITS, CODE_BLOCK>(a, group, t, t == 0);
      if (t + 1 == stop) gate_up_block<FORMAT, BITS, 1>(a, group, t, t == 0);
      if (t + 2 == stop) gate_up_block<FORMAT, BITS, 2>(a, group, t, t == 0);
      if (t + 3 == stop) gate_up_block<FORMAT, BITS, 3>(a, group, t, t == 0);
    }
  }
}

template <Format FORMAT>
void gate_up_grouped(const GateUpArgs& a, int64_t begin, int64_t end) {
  return a.gate.codes.bits == 16 ? gate_up_format<FORMAT, 16>(a, begin, end) : gate_up_format<FORMAT, 8>(a, begin, end);
}

void gate_up(const GateUpArgs& a, int64_t begin, int64_t end) {
  switch (a.gate.weight->format) {
    case Format::f32:
      return gate_up_format<Format::f32, 0>(a, begin, end);
    case Format::f16:
      return gate_up_format<Format::f16, 0>(a, begin, end);
    case Format::bf16:
      return gate_up_format<Format::bf16, 0>(a, begin, end);
    case Format::q8:
      return gate_up_grouped<Format::q8>(a, begin, end);
    case Format::q4:
      return gate_up_grouped<Format::q4>(a, begin, end);
  }
}

}  // namespace
