// Attention of one head of one text in bfloat16. Included inside an anonymous namespace, after attention_*.h.

constexpr int kRowPairs = 16;  // in a row of a panel of 32 bfloat16

// Queries, keys and values of a group of texts in bfloat16: panels of 32 columns, [panel][row][16 pairs]. A head's rows lie side by side, so
// queries are read as they are, and 256 tokens of width 384 take 0.6 MB: float32 rows would not stay in the second-level cache. What is turned
// first, queries and keys, is in float32 until then.
struct Projected {
  uint32_t* panels;
  size_t panel_pitch;  // in pairs
  float* rows;
  size_t pitch;

  // How many columns of float32 it needs.
  static size_t columns(const AttentionBlock& b, bool turns) { return turns ? static_cast<size_t>(b.heads + b.kv_heads) * b.head_pad : 0; }
  void take(Cutter& m, const AttentionBlock& b, size_t tokens, float* floats, bool turns) {
    panels = m.cut<uint32_t>(tokens * b.qkv.n_pad / 2), panel_pitch = tokens * kRowPairs;
    rows = floats, pitch = columns(b, turns);
  }
  INLINE uint32_t* at(int panel, int r) const { return panels + panel * panel_pitch + static_cast<size_t>(r) * kRowPairs; }
  INLINE float* row(int r) const { return rows + r * pitch; }
  // 32 columns of a row.
  INLINE void put(int panel, int r, const vf* v) const {
    const size_t column = static_cast<size_t>(panel) * kPanel;
    if (column < pitch)
      store(row(r) + column, v[0]), store(row(r) + column + VL, v[1]);
    else
      to_bf16(at(panel, r), v[0], v[1]);
  }
  // A row that was turned is complete.
  INLINE void settle(int r) const {
    for (size_t column = 0; column < pitch; column += kPanel) {
      const float* from = row(r) + column;
      to_bf16(at(static_cast<int>(column / kPanel), r), load(from), load(from + VL));
    }
  }
};

// Working memory of one worker, for texts of up to `length` keys.
struct HeadMemory {
  uint32_t* keys;     // [blocks of 32 keys][head_pad / 2][32]
  uint32_t* values;   // [head_pad / 32][keys / 2][32]
  float* scores;      // [kQueryRows][keys]
  uint32_t* weights;  // [kQueryRows][keys / 2]
  float* mixed;       // [kQueryRows][32]
  float* rows;        // [2][width]

  void take(Cutter& memory, int length, int head_pad, int width) {
    const size_t keys_pad = round_up(length, 32);
    keys = memory.cut<uint32_t>(keys_pad * head_pad / 2);
    values = memory.cut<uint32_t>(keys_pad * head_pad / 2);
    scores = memory.cut<float>(kQueryRows * keys_pad);
    weights = memory.cut<uint32_t>(kQueryRows * keys_pad / 2);
    mixed = memory.cut<float>(kQueryRows * 32);
    rows = memory.cut<float>(2 * static_cast<size_t>(width));
  }
};

// Keys to columns, 32 at a time. Rows past the text are read too; their scores are never used.
static INLINE void pack_keys(const uint32_t* k, size_t panel_pitch, int length, int head_pad, uint32_t* to) {
  const int depth = head_pad / 2;
  for (int first = 0; first < length; first += 16) {
    uint32_t* block = to + static_cast<size_t>(first / 32) * depth * 32 + first % 32;
    const uint32_t* rows = k + static_cast<size_t>(first) * kRowPairs;
    for (int d = 0; d < depth; d += 16, rows += panel_pitch) transpose16(rows, kRowPairs, block + d * 32);
  }
}

// Values by 32 dimensions, keys in pairs, in the order in which `weigh` leaves weights. Rows past the text are zero: zero weights do not
// cancel NaN.
static INLINE void pack_values(const uint32_t* v, size_t panel_pitch, int length, int head_pad, uint32_t* to) {
  const int keys = round_up(length, 32);
  alignas(64) static constexpr uint32_t zeros[16] = {};
  for (int d = 0; d < head_pad; d += 32, v += panel_pitch)
    for (int block = 0; block < keys; block += 32)
      for (int pair = 0; pair < 16; pair++, to += 32) {
        const int j = block + 2 * (length - block > 16 ? kPairOrder[pair] : pair);
        const uint32_t* first = v + static_cast<size_t>(j) * kRowPairs;
        pair_rows(j < length ? first : zeros, j + 1 < length ? first + kRowPairs : zeros, to);
      }
}

// Whether products of these rows with such others can overflow or be NaN. Otherwise no score is.
static INLINE bool wild(const uint32_t* rows, size_t panel_pitch, int count, int head_pad) {
  Largest16 largest;
  for (int d = 0; d < head_pad; d += 32, rows += panel_pitch)
    for (int r = 0; r < count; r++) largest.see(rows + static_cast<size_t>(r) * kRowPairs);
  return largest.reaches(48);
}

// `projected` has the text's first row at `token`. Results of the head go to `to`, rows `to_pitch` apart.
// Of `queries` rows, the first `length` are keys too, or all and more. Results are zero for a query whose range has no key.
static void attend(const AttentionBlock& block, const AttentionCall& call, const Projected& projected, int token, int length, int queries,
                   int head, float* to, size_t to_pitch, const HeadMemory& m) {
  const int dims = block.head_pad, depth = dims / 2, shared = head / (block.heads / block.kv_heads);
  const int panels = dims / kPanel;
  const size_t pitch = projected.panel_pitch;
  const uint32_t* q = projected.at(head * panels, token);
  const uint32_t* k = projected.at((block.heads + shared) * panels, token);
  const uint32_t* v = projected.at((block.heads + block.kv_heads + shared) * panels, token);
  const int keys_pad = round_up(length, 32);
  pack_keys(k, pitch, length, dims, m.keys);
  pack_values(v, pitch, length, dims, m.values);
  Scoring s;
  s.by = block.scale * 1.44269504f;
  const bool large = wild(q, pitch, queries, dims) || wild(k, pitch, length, dims);
  s.careful = call.bias || large;
  for (int first = 0; first < queries; first += kQueryRows) {
    const int count = least(kQueryRows, queries - first), last = first + count - 1;
    int begin = 0, stop = length;
    if (block.window >= 0) begin = most(0, first - block.window) / 32 * 32, stop = least(stop, last + block.window + 1);
    if (block.causal) stop = least(stop, last + 1);
    if (begin >= stop) {
      for (int r = first; r <= last; r++) zero_floats(to + r * to_pitch + static_cast<size_t>(head) * dims, dims);
      continue;
    }
    s.latest = 0, s.earliest = length;
    for (int r = 0; r < count; r++) {
      const int i = first + r;
      s.from[r] = block.window >= 0 ? most(0, i - block.window) : 0;
      s.until[r] = block.window >= 0 ? least(length, i + block.window + 1) : length;
      if (block.causal) s.until[r] = least(s.until[r], i + 1);
      s.latest = most(s.latest, s.from[r]), s.earliest = least(s.earliest, s.until[r]);
      s.bias[r] = call.bias ? call.bias + head * call.bias_head + i * call.bias_row : nullptr;
    }
    // Of the text's last block only half is in use if it has at most 16 keys; any other is used as a whole, with weights of zero.
    const int end = round_up(stop, 32);
    const bool half = end == keys_pad && keys_pad - length >= 16;
    float top[kQueryRows], reciprocal[kQueryRows];
    score(count, q + static_cast<size_t>(first) * kRowPairs, pitch, m.keys, depth, begin, end, half, s, m.scores, keys_pad, top);
    // Of very large scores, a product with the scale is not precise enough to be subtracted from another.
    if (large)
      for (int r = 0; r < count; r++) {
        float* row = m.scores + static_cast<size_t>(r) * keys_pad;
        for (int j = begin; j < (half ? end - 16 : end); j += VL) store(row + j, sub(load(row + j), set1(top[r])));
        top[r] = 0.f;
      }
    const float by = call.bias ? 1.f : s.by;
    int r = 0;
    for (; r + 4 <= count; r += 4)
      weigh<4>(m.scores + static_cast<size_t>(r) * keys_pad, m.weights + static_cast<size_t>(r) * keys_pad / 2, keys_pad, begin, end, half, by,
               top + r, reciprocal + r);
    for (; r < count; r++)
      weigh<1>(m.scores + static_cast<size_t>(r) * keys_pad, m.weights + static_cast<size_t>(r) * keys_pad / 2, keys_pad, begin, end, half, by,
               top + r, reciprocal + r);
    for (r = 0; r < count; r++)
      if (s.from[r] >= s.until[r]) reciprocal[r] = 0.f;
    const int pairs = ((half ? length + 1 : end) - begin) / 2;
    for (int d = 0; d < dims; d += 32)
      mix(count, m.weights + begin / 2, keys_pad / 2, m.values + (static_cast<size_t>(d) * keys_pad + static_cast<size_t>(begin) * 32) / 2, pairs,
          reciprocal, to + first * to_pitch + static_cast<size_t>(head) * dims + d, to_pitch, m.mixed);
  }
}
