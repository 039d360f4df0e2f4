// What both blocks share: rows to codes, a product of them, and what follows, over threads. Included inside an anonymous namespace.

// Where row r of a product's input lies.
static INLINE uint8_t* code_row(uint8_t* a, int steps, int r) {
  return a + (static_cast<size_t>(r / kTile) * steps * kTile + r % kTile) * kStepBytes;
}

// Rows from `first` on to codes and scales. row(r, turn) is where row r lies, and may use memory of its turn, 0 or 1: two rows at a time, since
// each alone would wait for what its scale is.
template <Form F, class Row>
static INLINE void encode(int first, int count, int width, const Row& row, uint8_t* codes, int steps, RowScale* scales) {
  for (int r = first; r < first + count; r += 2) {
    const bool two = r + 1 < first + count;
    const float *x = row(r, 0), *x1 = two ? row(r + 1, 1) : x;
    Coding coding{{1.f, 0.f}, 0.f, 0.f}, coding1 = coding;
    if (F != Form::kBFloat16) {
      coding = coding_of(x, width);
      if (two) coding1 = coding_of(x1, width);
    }
    scales[r] = coding.scale;
    write_codes<F>(x, width, coding, code_row(codes, steps, r), kTile * kStepBytes);
    if (!two) break;
    scales[r + 1] = coding1.scale;
    write_codes<F>(x1, width, coding1, code_row(codes, steps, r + 1), kTile * kStepBytes);
  }
}

// The 16 * n columns from `column` of a product's result: sums * token scale * column scale + bias.
template <Form F>
struct Columns {
  vf scale[kPanel / VL], colsum[kPanel / VL], bias[kPanel / VL];
  INLINE Columns(const Linear& l, int panel) {
#pragma GCC unroll 8
    for (int i = 0; i < kPanel / VL; i++) {
      const int n = panel * kPanel + i * VL;
      bias[i] = load(l.bias + n);
      if (F != Form::kBFloat16) scale[i] = load(l.scale + n), colsum[i] = load(l.colsum + n);
    }
  }
  INLINE vf value(int i, const int32_t* c, const RowScale& row) const {
    const vf sum = sums<F>(c + i * VL);
    if (F == Form::kBFloat16) return add(sum, bias[i]);
    return fma(fma(sum, set1(row.scale), mul(colsum[i], set1(row.shift))), scale[i], bias[i]);
  }
};

constexpr int kChunk = 128 / kProductRows * kProductRows;  // rows whose codes and results stay in the second-level cache

// prepare(first row, rows, worker), the product with its epilogue, finish(row, worker) for rows 0 to rows - 1. `unit` panels stay together.
// Many rows are spread over the threads, few share the panels.
template <Form F, class Prepare, class Epilogue, class Finish>
static void whole_product(const Threads& threads, const Linear& l, const uint8_t* a, int rows, int unit, const Prepare& prepare,
                          const Epilogue& epilogue, const Finish& finish_row) {
  const int panels = l.n_pad / kPanel;
  if (threads.count <= 1 || rows >= 32 * threads.count) {
    const int share = round_up((rows + threads.count - 1) / threads.count, kProductRows);
    const int chunk = least(kChunk, share);
    for_each(threads, (rows + chunk - 1) / chunk, [&](int i, int worker) {
      const int first = i * chunk, count = least(chunk, rows - first);
      prepare(first, count, worker);
      product<F>(l, a, first, count, 0, panels, epilogue);
      for (int r = first; r < first + count; r++) finish_row(r, worker);
    });
    return;
  }
  const int pieces = (rows + 7) / 8;
  for_each(threads, pieces, [&](int i, int worker) { prepare(i * 8, least(8, rows - i * 8), worker); });
  const int units = panels / unit, each = most(1, units / (3 * threads.count));
  for_each(threads, (units + each - 1) / each, [&](int i, int) {
    for (int first = 0; first < rows; first += kChunk)
      product<F>(l, a, first, least(kChunk, rows - first), i * each * unit, least(each, units - i * each) * unit, epilogue);
  });
  for_each(threads, pieces, [&](int i, int worker) {
    for (int r = i * 8; r < least(rows, i * 8 + 8); r++) finish_row(r, worker);
  });
}
