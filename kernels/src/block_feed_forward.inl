// The feed-forward block: product, activation or gate, product, residual, norms. Included inside an anonymous namespace.

// Rows at once: as many as keep the float32 values between the products in about 400 KB.
static INLINE int rows_at_once(int inner) {
  const int rows = 98304 / inner / kProductRows * kProductRows;
  return rows < 32 ? 32 : rows > 128 ? 128 : rows;
}

struct FeedForwardMemory {
  uint8_t* codes;
  float* inner;   // [rows][inputs of the second product]
  uint8_t* inner_codes;
  float* result;  // [rows][width_pad]
  RowScale *scales, *inner_scales;

  void take(Cutter& m, const FeedForwardBlock& b, int rows) {
    const size_t pad = rows_padded(rows);
    codes = m.cut<uint8_t>(pad * b.up.steps * kStepBytes);
    inner = m.cut<float>(pad * b.down.k_pad);
    inner_codes = m.cut<uint8_t>(pad * b.down.steps * kStepBytes);
    result = m.cut<float>(pad * b.shared.width_pad);
    scales = m.cut<RowScale>(pad);
    inner_scales = m.cut<RowScale>(pad);
  }
};

template <Form F, Activation A, bool Gated>
static void feed_rows(const FeedForwardBlock& b, const FeedForwardCall& c, const Threads& threads, const int* rows, int count,
                      const FeedForwardMemory& m, float* const* row_of) {
  const Shared& s = b.shared;
  const int width = b.down.k_pad;
  whole_product<F>(
      threads, b.up, m.codes, count, Gated ? 2 : 1,
      [&](int from, int many, int worker) {
        const auto row = [&](int r, int turn) {
          return prepared(s, c.x + static_cast<size_t>(rows[r]) * s.width, row_of[worker] + turn * s.width_pad);
        };
        encode<F>(from, many, s.width_pad, row, m.codes, b.up.steps, m.scales);
      },
      [&](int panel, int row, int many, const int32_t* sum) {
        const Columns<F> columns(b.up, panel);
        const bool multiplies = Gated && panel % 2;
        for (int r = row; r < row + many; r++, sum += kPanel) {
          float* to = m.inner + static_cast<size_t>(r) * width + (Gated ? panel / 2 : panel) * kPanel;
#pragma GCC unroll 8
          for (int i = 0; i < kPanel / VL; i++) {
            const vf v = columns.value(i, sum, m.scales[r]);
            store(to + i * VL, multiplies ? mul(v, load(to + i * VL)) : activate<A>(v));
          }
        }
      },
      [](int, int) {});
  whole_product<F>(
      threads, b.down, m.inner_codes, count, 1,
      [&](int from, int many, int) {
        const auto row = [&](int r, int) {
          float* inner = m.inner + static_cast<size_t>(r) * width;
          for (int i = b.inner_pad; i < width; i += VL) store(inner + i, set1(0.f));
          return inner;
        };
        encode<F>(from, many, width, row, m.inner_codes, b.down.steps, m.inner_scales);
      },
      [&](int panel, int row, int many, const int32_t* sum) {
        const Columns<F> columns(b.down, panel);
        for (int r = row; r < row + many; r++, sum += kPanel) {
          float* to = m.result + static_cast<size_t>(r) * s.width_pad + panel * kPanel;
#pragma GCC unroll 8
          for (int i = 0; i < kPanel / VL; i++) store(to + i * VL, columns.value(i, sum, m.inner_scales[r]));
        }
      },
      [&](int r, int) {
        float* row = m.result + static_cast<size_t>(r) * s.width_pad;
        for (int i = b.down.n_pad; i < s.width_pad; i += VL) store(row + i, set1(0.f));
        finish(s, c.x + static_cast<size_t>(rows[r]) * s.width, row, c.y + static_cast<size_t>(rows[r]) * s.width);
      });
}

template <Form F, bool Gated>
static void feed_activated(const FeedForwardBlock& b, const FeedForwardCall& c, const Threads& threads, const int* rows, int count,
                           const FeedForwardMemory& m, float* const* row_of) {
  switch (b.activation) {
    case Activation::kGelu: return feed_rows<F, Activation::kGelu, Gated>(b, c, threads, rows, count, m, row_of);
    case Activation::kGeluTanh: return feed_rows<F, Activation::kGeluTanh, Gated>(b, c, threads, rows, count, m, row_of);
    case Activation::kRelu: return feed_rows<F, Activation::kRelu, Gated>(b, c, threads, rows, count, m, row_of);
    case Activation::kSilu: return feed_rows<F, Activation::kSilu, Gated>(b, c, threads, rows, count, m, row_of);
  }
}

template <Form F>
static bool run_feed_forward(const FeedForwardBlock& b, const FeedForwardCall& c) {
  const Shared& s = b.shared;
  int rows = 0;
  for (int64_t text = 0; text < c.batch; text++) rows += static_cast<int>(c.lengths && c.lengths[text] < c.seq ? c.lengths[text] : c.seq);
  int share = rows_at_once(b.down.k_pad);
  const int threads = most(1, c.threads.count);
  if (threads > 1) share = least(share, round_up((rows + threads - 1) / threads, kProductRows));
  // Fewer than 32 rows for each thread: all threads share the rows, each with some of the columns.
  const bool apart = threads <= 1 || rows >= 32 * threads;
  if (!apart) share = most(rows, 1);
  const Threads outer = apart ? c.threads : kAlone, inner = apart ? kAlone : c.threads;
  const int groups = (rows + share - 1) / share, sets = apart ? least(threads, most(1, groups)) : 1;
  constexpr int kMost = 256;
  if (threads > kMost) return false;
  int* row_list = nullptr;
  FeedForwardMemory memory[kMost];
  float* row_of[kMost];
  Cutter cutter{nullptr, 0};
  for (int pass = 0; pass < 2; pass++) {
    row_list = cutter.cut<int>(static_cast<size_t>(rows) + 1);
    for (int i = 0; i < sets; i++) memory[i].take(cutter, b, share);
    for (int i = 0; i < threads; i++) row_of[i] = cutter.cut<float>(2 * static_cast<size_t>(s.width_pad));
    if (pass) break;
    uint8_t* base = static_cast<uint8_t*>(scratch_take(cutter.used));
    if (!base) return false;
    cutter = {base, 0};
  }
  int count = 0;
  for (int64_t text = 0; text < c.batch; text++) {
    const int length = static_cast<int>(c.lengths && c.lengths[text] < c.seq ? c.lengths[text] : c.seq);
    for (int t = 0; t < length; t++) row_list[count++] = static_cast<int>(text * c.seq + t);
    if (length < c.seq) zero_floats(c.y + (text * c.seq + length) * s.width, static_cast<size_t>(c.seq - length) * s.width);
  }
  for_each(outer, groups, [&](int i, int worker) {
    const int first = i * share, many = least(share, rows - first);
    if (b.gated)
      feed_activated<F, true>(b, c, inner, row_list + first, many, memory[worker], row_of + worker);
    else
      feed_activated<F, false>(b, c, inner, row_list + first, many, memory[worker], row_of + worker);
  });
  scratch_give(cutter.base);
  return true;
}
