// Attention of one head of one text, from projected rows in float32. Included inside an anonymous namespace, after attention_*.h.

#ifndef MIX_TILES
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
#endif

// Working memory of one worker, for texts of up to `length` keys.
struct HeadMemory {
  uint32_t* keys;     // [blocks of 32 keys][head_pad / kPair][32]
  uint32_t* values;   // [head_pad / 32][keys / kPair][32]
  uint32_t* query;    // [kQueryRows][head_pad / kPair]
  float* scores;      // [kQueryRows][keys]
  uint32_t* weights;  // [kQueryRows][keys / kPair], the same memory as scores in float32
  float* mixed;       // [kQueryRows][32]
  float* row;         // [width of the longest row]

  void take(Cutter& memory, int length, int head_pad, int width) {
    const size_t keys_pad = round_up(length, 32);
    keys = memory.cut<uint32_t>(keys_pad * head_pad / kPair);
    values = memory.cut<uint32_t>(keys_pad * head_pad / kPair);
    query = memory.cut<uint32_t>(kQueryRows * head_pad / kPair);
    scores = memory.cut<float>(kQueryRows * keys_pad);
    weights = kPair == 1 ? reinterpret_cast<uint32_t*>(scores) : memory.cut<uint32_t>(kQueryRows * keys_pad / kPair);
    mixed = memory.cut<float>(kQueryRows * 32);
    row = memory.cut<float>(width);
  }
};

// Keys to columns, 32 at a time. Rows past the text are read too; their scores are never used.
static INLINE void pack_keys(const float* k, size_t pitch, int length, int head_pad, uint32_t* to) {
  const int depth = head_pad / kPair;
  for (int first = 0; first < length; first += 16) {
    uint32_t* block = to + static_cast<size_t>(first / 32) * depth * 32 + first % 32;
    const float* rows = k + first * pitch;
#if HAS_BF16
    alignas(64) uint16_t pairs[16 * 32];
    for (int d = 0; d < head_pad; d += 32) {
      for (int r = 0; r < 16; r++) to_bf16(reinterpret_cast<uint8_t*>(pairs + r * 32), rows + r * pitch + d);
      transpose16(reinterpret_cast<const uint32_t*>(pairs), 16, block + d / 2 * 32);
    }
#else
    for (int d = 0; d < head_pad; d += 16) transpose16(reinterpret_cast<const uint32_t*>(rows + d), pitch, block + d * 32);
#endif
  }
}

// Values by 32 dimensions; in bfloat16, keys in pairs. Rows past the text are zero: zero weights do not cancel NaN.
static INLINE void pack_values(const float* v, size_t pitch, int length, int head_pad, uint32_t* to) {
  const int keys = round_up(length, 32);
  for (int d = 0; d < head_pad; d += 32) {
#if HAS_BF16
    alignas(64) uint16_t pair[2][32];
    for (int j = 0; j < keys; j += 2, to += 32) {
      for (int i = 0; i < 2; i++) {
        if (j + i < length)
          to_bf16(reinterpret_cast<uint8_t*>(pair[i]), v + (j + i) * pitch + d);
        else
          __builtin_memset(pair[i], 0, sizeof pair[i]);
      }
      pair_rows(pair[0], pair[1], to);
    }
#else
    for (int j = 0; j < keys; j++, to += 32) {
      if (j < length)
        __builtin_memcpy(to, v + j * pitch + d, 32 * sizeof(float));
      else
        __builtin_memset(to, 0, 32 * sizeof(float));
    }
#endif
  }
}

// Scores of R queries to weights, not yet divided by their sums, and the sums' reciprocals. Query r reads keys from[r] to until[r] - 1; blocks
// of keys from `begin` to `end` are in use, and weights outside a query's range become zero. Rows take turns, since each alone would wait for its
// own maximum and sum; what is computed for a row does not depend on the others.
template <int R>
static INLINE void softmax(float* scores, uint32_t* weights, size_t pitch, int begin, int end, const int* from, const int* until, float scale,
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
      vf p = exp2_negative<kPair == 2 ? 3 : 5>(fma(load(scores + r * pitch + j), factor, minus[r]));
      if (edge) p = keep(p, j, from[r], until[r], set1(0.f));
      sum[r] = add(sum[r], p);
      uint32_t* row = weights + r * pitch / kPair;
#if HAS_BF16
      store_bf16(reinterpret_cast<uint16_t*>(row) + j, p);
#else
      store(reinterpret_cast<float*>(row) + j, p);
#endif
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    if (stop < end) __builtin_memset(weights + (r * pitch + stop) / kPair, 0, static_cast<size_t>(end - stop) / kPair * 4);
    reciprocal[r] = 1.f / reduce_add(sum[r]);
  }
}

// rows: the text's first projected row. Results of the head go to `to`, rows `to_pitch` apart.
static void attend(const AttentionBlock& block, const AttentionCall& call, const float* rows, size_t pitch, int length, int queries,
                   int head, float* to, size_t to_pitch, const HeadMemory& m) {
  const int dims = block.head_pad, depth = dims / kPair, shared = head / (block.heads / block.kv_heads);
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
    const int end = round_up(stop, 32);
    const uint32_t* query = reinterpret_cast<const uint32_t*>(q + first * pitch);
    size_t query_pitch = pitch;
#if HAS_BF16
    for (int r = 0; r < count; r++)
      for (int d = 0; d < dims; d += 32)
        to_bf16(reinterpret_cast<uint8_t*>(m.query + r * depth + d / 2), q + (first + r) * pitch + d);
    query = m.query, query_pitch = depth;
#endif
    for (int j = begin; j < end; j += 32)
      mix_up_to(count, query, query_pitch, m.keys + static_cast<size_t>(j) * depth, depth, stop - j, m.scores + j, keys_pad);
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
      softmax<4>(m.scores + static_cast<size_t>(r) * keys_pad, m.weights + static_cast<size_t>(r) * keys_pad / kPair, keys_pad, begin, end,
                 from + r, until + r, block.scale, bias + r, reciprocal + r);
    for (; r < count; r++)
      softmax<1>(m.scores + static_cast<size_t>(r) * keys_pad, m.weights + static_cast<size_t>(r) * keys_pad / kPair, keys_pad, begin, end,
                 from + r, until + r, block.scale, bias + r, reciprocal + r);
#ifdef MIX_TILES
    const int used = end - begin;
#else
    const int used = round_up(stop - begin, kPair);
#endif
    for (int d = 0; d < dims; d += 32) {
      mix_up_to(count, m.weights + begin / kPair, keys_pad / kPair,
                m.values + (static_cast<size_t>(d) * keys_pad + static_cast<size_t>(begin) * 32) / kPair, used / kPair, 32,
                m.mixed, 32);
      for (r = 0; r < count; r++) {
        float* o = to + (first + r) * to_pitch + static_cast<size_t>(head) * dims + d;
        const vf by = set1(reciprocal[r]);
        for (int i = 0; i < 32; i += VL) store(o + i, mul(load(m.mixed + r * 32 + i), by));
      }
    }
  }
}
