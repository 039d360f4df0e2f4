// Attention of one head of one text in float32, of variants without bfloat16. Included inside an anonymous namespace, after attention_*.h.

static void mix_up_to(int rows, const uint32_t* a, size_t lda, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  switch (rows) {
    case 1: return mix_rows<1>(a, lda, b, k, columns, c, ldc);
    case 2: return mix_rows<2>(a, lda, b, k, columns, c, ldc);
    case 3: return mix_rows<3>(a, lda, b, k, columns, c, ldc);
    case 4: return mix_rows<4>(a, lda, b, k, columns, c, ldc);
#if QUERY_ROWS > 4
    case 5: return mix_rows<5>(a, lda, b, k, columns, c, ldc);
    case 6: return mix_rows<6>(a, lda, b, k, columns, c, ldc);
#endif
#if QUERY_ROWS > 6
    case 7: return mix_rows<7>(a, lda, b, k, columns, c, ldc);
    case 8: return mix_rows<8>(a, lda, b, k, columns, c, ldc);
#endif
  }
}

// Queries, keys and values of a group of texts, as rows of the product's result.
struct Projected {
  float* rows;
  size_t pitch;

  // How many columns of float32 it needs. Rows a multiple of 4096 bytes apart would share their places in the first-level cache.
  static size_t columns(const AttentionBlock& b, bool) { return b.qkv.n_pad + (b.qkv.n_pad % 1024 == 0 ? 32 : 0); }
  void take(Cutter&, const AttentionBlock& b, size_t, float* floats, bool) { rows = floats, pitch = columns(b, true); }
  INLINE float* row(int r) const { return rows + r * pitch; }
  // 32 columns of a row.
  INLINE void put(int panel, int r, const vf* v) const {
#pragma GCC unroll 8
    for (int i = 0; i < kPanel / VL; i++) store(row(r) + panel * kPanel + i * VL, v[i]);
  }
  // A row that was turned is complete.
  INLINE void settle(int) const {}
};

// Working memory of one worker, for texts of up to `length` keys.
struct HeadMemory {
  uint32_t* keys;     // [blocks of 32 keys][head_pad][32]
  uint32_t* values;   // [head_pad / 32][keys][32]
  float* scores;      // [kQueryRows][keys], then weights
  float* mixed;       // [kQueryRows][32]
  float* rows;        // [2][width]

  void take(Cutter& memory, int length, int head_pad, int width) {
    const size_t keys_pad = round_up(length, 32);
    keys = memory.cut<uint32_t>(keys_pad * head_pad);
    values = memory.cut<uint32_t>(keys_pad * head_pad);
    scores = memory.cut<float>(kQueryRows * keys_pad);
    mixed = memory.cut<float>(kQueryRows * 32);
    rows = memory.cut<float>(2 * static_cast<size_t>(width));
  }
};

// Keys to columns, 32 at a time. Rows past the text are read too; their scores are never used.
static INLINE void pack_keys(const float* k, size_t pitch, int length, int head_pad, uint32_t* to) {
  for (int first = 0; first < length; first += 16) {
    uint32_t* block = to + static_cast<size_t>(first / 32) * head_pad * 32 + first % 32;
    const float* rows = k + first * pitch;
    for (int d = 0; d < head_pad; d += 16) transpose16(reinterpret_cast<const uint32_t*>(rows + d), pitch, block + d * 32);
  }
}

// Values by 32 dimensions. Rows past the text are zero: zero weights do not cancel NaN.
static INLINE void pack_values(const float* v, size_t pitch, int length, int head_pad, uint32_t* to) {
  const int keys = round_up(length, 32);
  for (int d = 0; d < head_pad; d += 32) {
    for (int j = 0; j < keys; j++, to += 32) {
      if (j < length)
        __builtin_memcpy(to, v + j * pitch + d, 32 * sizeof(float));
      else
        __builtin_memset(to, 0, 32 * sizeof(float));
    }
  }
}

// Scores of R queries to weights, not yet divided by their sums, and the sums' reciprocals. Query r reads keys from[r] to until[r] - 1; blocks
// of keys from `begin` to `end` are in use, and weights outside a query's range become zero. Rows take turns, since each alone would wait for its
// own maximum and sum; what is computed for a row does not depend on the others.
template <int R>
static INLINE void softmax(float* scores, size_t pitch, int begin, int end, const int* from, const int* until, float scale,
                           const float* const* bias, float* reciprocal) {
  const float log2_scale = scale * 1.44269504f;
  const vf by = set1(log2_scale), lowest = set1(-3e38f);
  int latest = from[0], earliest = until[0], most_until = until[0];
  for (int r = 1; r < R; r++)
    latest = most(latest, from[r]), earliest = least(earliest, until[r]), most_until = most(most_until, until[r]);
  const int stop = round_up(most_until, VL);
  vf top[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) top[r] = lowest;
  for (int j = begin; j < stop; j += VL) {
    const bool edge = j < latest || j + VL > earliest;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      float* at = scores + r * pitch + j;
      vf s = load(at);
      if (bias[r]) {
        const int left = until[r] - j;
        const vf extra = left >= VL ? load(bias[r] + j) : left > 0 ? load_first(bias[r] + j, left) : set1(0.f);
        s = fma(s, by, mul(extra, set1(1.44269504f)));
        if (edge) s = keep(s, j, from[r], until[r], lowest);
        store(at, s);
      } else if (edge) {
        s = keep(s, j, from[r], until[r], lowest);
      }
      top[r] = vmax(top[r], s);
    }
  }
  vf minus[R], sum[R];
  const vf factor = bias[0] ? set1(1.f) : by;
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) minus[r] = set1(-reduce_max(top[r]) * (bias[0] ? 1.f : log2_scale)), sum[r] = set1(0.f);
  for (int j = begin; j < stop; j += VL) {
    const bool edge = j < latest || j + VL > earliest;
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      vf p = exp2_negative(fma(load(scores + r * pitch + j), factor, minus[r]));
      if (edge) p = keep(p, j, from[r], until[r], set1(0.f));
      sum[r] = add(sum[r], p);
      store(scores + r * pitch + j, p);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    if (stop < end) __builtin_memset(scores + r * pitch + stop, 0, static_cast<size_t>(end - stop) * 4);
    reciprocal[r] = 1.f / reduce_add(sum[r]);
  }
}

// The text's first row is at `token`. Results of the head go to `to`, rows `to_pitch` apart.
// Of `queries` rows, the first `length` are keys too, or all and more. Results are zero for a query whose range has no key.
static void attend(const AttentionBlock& block, const AttentionCall& call, const Projected& projected, int token, int length, int queries,
                   int head, float* to, size_t to_pitch, const HeadMemory& m) {
  const int dims = block.head_pad, shared = head / (block.heads / block.kv_heads);
  const size_t pitch = projected.pitch;
  const float* rows = projected.row(token);
  const float* q = rows + static_cast<size_t>(head) * dims;
  const float* k = rows + static_cast<size_t>(block.heads + shared) * dims;
  const float* v = rows + static_cast<size_t>(block.heads + block.kv_heads + shared) * dims;
  const int keys_pad = round_up(length, 32);
  pack_keys(k, pitch, length, dims, m.keys);
  pack_values(v, pitch, length, dims, m.values);
  for (int first = 0; first < queries; first += kQueryRows) {
    const int count = least(kQueryRows, queries - first), last = first + count - 1;
    int begin = 0, stop = length;
    if (block.window >= 0) begin = most(0, first - block.window) / 32 * 32, stop = least(stop, last + block.window + 1);
    if (block.causal) stop = least(stop, last + 1);
    if (begin >= stop) {
      for (int r = first; r <= last; r++) zero_floats(to + r * to_pitch + static_cast<size_t>(head) * dims, dims);
      continue;
    }
    const int end = round_up(stop, 32);
    const uint32_t* query = reinterpret_cast<const uint32_t*>(q + first * pitch);
    for (int j = begin; j < end; j += 32)
      mix_up_to(count, query, pitch, m.keys + static_cast<size_t>(j) * dims, dims, stop - j, m.scores + j, keys_pad);
    float reciprocal[kQueryRows];
    int from[kQueryRows], until[kQueryRows];
    const float* bias[kQueryRows];
    for (int r = 0; r < count; r++) {
      const int i = first + r;
      from[r] = block.window >= 0 ? most(0, i - block.window) : 0;
      until[r] = block.window >= 0 ? least(length, i + block.window + 1) : length;
      if (block.causal) until[r] = least(until[r], i + 1);
      bias[r] = call.bias ? call.bias + head * call.bias_head + i * call.bias_row : nullptr;
    }
    int r = 0;
    for (; r + 4 <= count; r += 4)
      softmax<4>(m.scores + static_cast<size_t>(r) * keys_pad, keys_pad, begin, end, from + r, until + r, block.scale, bias + r, reciprocal + r);
    for (; r < count; r++)
      softmax<1>(m.scores + static_cast<size_t>(r) * keys_pad, keys_pad, begin, end, from + r, until + r, block.scale, bias + r, reciprocal + r);
    for (r = 0; r < count; r++)
      if (from[r] >= until[r]) reciprocal[r] = 0.f;
    for (int d = 0; d < dims; d += 32) {
      mix_up_to(count, reinterpret_cast<const uint32_t*>(m.scores + begin), keys_pad,
                m.values + static_cast<size_t>(d) * keys_pad + static_cast<size_t>(begin) * 32, stop - begin, 32, m.mixed, 32);
      for (r = 0; r < count; r++) {
        float* o = to + (first + r) * to_pitch + static_cast<size_t>(head) * dims + d;
        const vf by = set1(reciprocal[r]);
        for (int i = 0; i < 32; i += VL) store(o + i, mul(load(m.mixed + r * 32 + i), by));
      }
    }
  }
}
