// The attention block: projections, attention, output product, residual, norms. Included inside an anonymous namespace.

constexpr int kGroupTokens = 128;  // texts are taken together up to this many tokens, so that all of it stays in the second-level cache

static INLINE int length_of(const AttentionCall& c, int64_t text) {
  return static_cast<int>(c.lengths ? c.lengths[text] : c.seq);
}

static INLINE bool turns(const AttentionBlock& b) { return b.rotary || b.q_gamma || b.k_gamma; }

// How many of a text's tokens are keys.
static INLINE int keys_of(const AttentionCall& c, int64_t text) {
  return static_cast<int>(c.attended ? c.attended[text] : length_of(c, text));
}

// RMS norms and rotation of the queries and keys of one token.
static void turn_heads(const AttentionBlock& b, const AttentionCall& c, float* row, int position) {
  const int half = c.rotary_dims / 2, step = b.rotary == 2 && c.rotary_columns == c.rotary_dims ? 2 : 1;
  const float* cosines = c.cosines + static_cast<size_t>(position) * c.rotary_columns;
  const float* sines = c.sines + static_cast<size_t>(position) * c.rotary_columns;
  for (int head = 0; head < b.heads + b.kv_heads; head++, row += b.head_pad) {
    const float* gamma = head < b.heads ? b.q_gamma : b.k_gamma;
    if (gamma) {
      vf square[2] = {set1(0.f), set1(0.f)};
      for (int i = 0; i < b.head_pad; i += 2 * VL) {
        const vf low = load(row + i), high = load(row + i + VL);
        square[0] = fma(low, low, square[0]), square[1] = fma(high, high, square[1]);
      }
      const float mean = reduce_add(add(square[0], square[1])) / static_cast<float>(b.head_size);
      const vf by = set1(1.f / __builtin_sqrtf(mean + b.shared.epsilon));
      for (int i = 0; i < b.head_pad; i += VL) store(row + i, mul(mul(load(row + i), by), load(gamma + i)));
    }
    if (b.rotary == 1) {
      float *first = row, *second = row + half;
      int i = 0;
      for (; i + VL <= half; i += VL) {
        const vf cosine = load(cosines + i), sine = load(sines + i), x = load(first + i), y = load(second + i);
        store(first + i, sub(mul(x, cosine), mul(y, sine)));
        store(second + i, fma(x, sine, mul(y, cosine)));
      }
      if (i < half) {
        const int left = half - i;
        const vf cosine = load_first(cosines + i, left), sine = load_first(sines + i, left);
        const vf x = load_first(first + i, left), y = load_first(second + i, left);
        store_first(first + i, sub(mul(x, cosine), mul(y, sine)), left);
        store_first(second + i, fma(x, sine, mul(y, cosine)), left);
      }
    } else if (b.rotary == 2) {
      for (int i = 0; i < half; i++) {
        const float cosine = cosines[i * step], sine = sines[i * step], x = row[2 * i], y = row[2 * i + 1];
        row[2 * i] = x * cosine - y * sine;
        row[2 * i + 1] = y * cosine + x * sine;
      }
    }
  }
}

// Memory of one group of texts.
struct GroupMemory {
  uint8_t* codes;      // of x, then of what attention mixed
  Projected projected;
  float* result;       // of the last product, [rows][width_pad]; the memory of what is projected in float32
  float* mixed;        // [rows][inputs of the last product]
  RowScale* scales;
  int *token_of, *row_of;  // rows of x and of y, in the order of the group

  void take(Cutter& m, const AttentionBlock& b, int tokens, int rows) {
    const size_t tokens_pad = rows_padded(tokens), rows_pad = rows_padded(rows);
    const size_t in = tokens_pad * b.qkv.steps, out = rows_pad * b.out.steps;
    codes = m.cut<uint8_t>((in > out ? in : out) * kStepBytes);
    const size_t first = tokens_pad * Projected::columns(b, turns(b)), second = rows_pad * b.shared.width_pad;
    result = m.cut<float>(first > second ? first : second);
    projected.take(m, b, tokens_pad, result, turns(b));
    mixed = m.cut<float>(rows_pad * b.out.k_pad);
    scales = m.cut<RowScale>(tokens_pad);
    token_of = m.cut<int>(tokens_pad);
    row_of = m.cut<int>(rows_pad);
  }
};

template <Form F>
static void attend_group(const AttentionBlock& b, const AttentionCall& c, const Threads& threads, int64_t first, int64_t last,
                         const GroupMemory& m, const HeadMemory* workers) {
  const Shared& s = b.shared;
  int tokens = 0, rows = 0;
  for (int64_t text = first; text < last; text++) {
    const int length = length_of(c, text);
    for (int t = 0; t < length; t++) {
      m.token_of[tokens++] = static_cast<int>(text * c.seq + t);
      if (t < c.out_seq) m.row_of[rows++] = static_cast<int>(text * c.out_seq + t);
    }
    for (int64_t t = length; t < c.out_seq; t++) zero_floats(c.y + (text * c.out_seq + t) * s.width, s.width);
  }
  if (!tokens) return;
  const bool turned = turns(b);
  whole_product<F>(
      threads, b.qkv, m.codes, tokens, 1,
      [&](int from, int count, int worker) {
        const auto row = [&](int r, int turn) {
          return prepared(s, c.x + static_cast<size_t>(m.token_of[r]) * s.width, workers[worker].rows + turn * s.width_pad);
        };
        encode<F>(from, count, s.width_pad, row, m.codes, b.qkv.steps, m.scales);
      },
      [&](int panel, int row, int count, const int32_t* sum) {
        const Columns<F> columns(b.qkv, panel);
        for (int r = row; r < row + count; r++, sum += kPanel) {
          vf v[kPanel / VL];
#pragma GCC unroll 8
          for (int i = 0; i < kPanel / VL; i++) v[i] = columns.value(i, sum, m.scales[r]);
          m.projected.put(panel, r, v);
        }
      },
      [&](int r, int) {
        if (!turned) return;
        turn_heads(b, c, m.projected.row(r), m.token_of[r] % static_cast<int>(c.seq));
        m.projected.settle(r);
      });

  // One task a head of a text: offsets of texts are found by adding up lengths again, which costs nothing beside the head.
  const int texts = static_cast<int>(last - first), width = b.out.k_pad, used = b.heads * b.head_pad;
  for_each(threads, texts * b.heads, [&](int task, int worker) {
    const int text = task / b.heads;
    int token = 0, row = 0;
    for (int i = 0; i < text; i++) {
      const int length = length_of(c, first + i);
      token += length, row += least(length, static_cast<int>(c.out_seq));
    }
    const int length = length_of(c, first + text);
    tiles_begin();
    attend(b, c, m.projected, token, keys_of(c, first + text), least(length, static_cast<int>(c.out_seq)),
           task % b.heads, m.mixed + static_cast<size_t>(row) * width, width, workers[worker]);
    tiles_end();
  });

  whole_product<F>(
      threads, b.out, m.codes, rows, 1,
      [&](int from, int count, int) {
        const auto row = [&](int r, int) {
          float* mixed = m.mixed + static_cast<size_t>(r) * width;
          for (int i = used; i < width; i += VL) store(mixed + i, set1(0.f));
          return mixed;
        };
        encode<F>(from, count, width, row, m.codes, b.out.steps, m.scales);
      },
      [&](int panel, int row, int count, const int32_t* sum) {
        const Columns<F> columns(b.out, panel);
        for (int r = row; r < row + count; r++, sum += kPanel) {
          float* to = m.result + static_cast<size_t>(r) * s.width_pad + panel * kPanel;
#pragma GCC unroll 8
          for (int i = 0; i < kPanel / VL; i++) store(to + i * VL, columns.value(i, sum, m.scales[r]));
        }
      },
      [&](int r, int) {
        float* row = m.result + static_cast<size_t>(r) * s.width_pad;
        for (int i = b.out.n_pad; i < s.width_pad; i += VL) store(row + i, set1(0.f));
        const int64_t to = m.row_of[r], text = to / c.out_seq;
        finish(s, c.x + (text * c.seq + to % c.out_seq) * s.width, row, c.y + to * s.width);
      });
}

template <Form F>
static bool run_attention(const AttentionBlock& b, const AttentionCall& c) {
  // Groups of whole texts. With fewer groups than threads, the threads share each group instead.
  int groups = 0, tokens_in_all = 0, longest = 0;
  for (int64_t i = 0; i < c.batch; i++) tokens_in_all += length_of(c, i), longest = most(longest, length_of(c, i));
  int limit = kGroupTokens;
  const auto group_end = [&](int64_t text) {
    int tokens = 0;
    do tokens += length_of(c, text++);
    while (text < c.batch && tokens + length_of(c, text) <= limit);
    return text;
  };
  for (int64_t text = 0; text < c.batch; text = group_end(text)) groups++;
  const bool apart = c.threads.count <= 1 || groups >= c.threads.count;
  if (!apart) limit = 0x7fffffff, groups = 1;
  const Threads outer = apart ? c.threads : kAlone, inner = apart ? kAlone : c.threads;

  int tokens = 0, rows = 0;
  for (int64_t text = 0; text < c.batch;) {
    const int64_t end = group_end(text);
    int t = 0, r = 0;
    for (; text < end; text++) t += length_of(c, text), r += least(length_of(c, text), static_cast<int>(c.out_seq));
    tokens = most(tokens, t), rows = most(rows, r);
  }
  const int workers = most(1, c.threads.count), sets = apart ? least(workers, most(1, groups)) : 1;
  constexpr int kMost = 256;
  if (workers > kMost) return false;
  int64_t* starts = nullptr;
  GroupMemory group[kMost];
  HeadMemory head[kMost];
  Cutter cutter{nullptr, 0};
  for (int pass = 0; pass < 2; pass++) {
    starts = cutter.cut<int64_t>(static_cast<size_t>(groups) + 1);
    for (int i = 0; i < sets; i++) group[i].take(cutter, b, tokens, rows);
    for (int i = 0; i < workers; i++) head[i].take(cutter, longest, b.head_pad, b.shared.width_pad);
    if (pass) break;
    uint8_t* memory = static_cast<uint8_t*>(scratch_take(cutter.used));
    if (!memory) return false;
    cutter = {memory, 0};
  }
  starts[0] = 0;
  for (int i = 0; i < groups; i++) starts[i + 1] = group_end(starts[i]);
  for_each(outer, groups, [&](int i, int worker) {
    attend_group<F>(b, c, inner, starts[i], starts[i + 1], group[worker], head + worker);
  });
  scratch_give(cutter.base);
  return true;
}
