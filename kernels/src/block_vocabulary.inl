// The vocabulary block: for each text, the maximum over its tokens of a product with a large table. Included inside an anonymous
// namespace.

constexpr int kVocabularyRows = 256 / kProductRows * kProductRows;  // rows whose codes stay in the second-level cache

template <Form F>
static bool run_vocabulary(const VocabularyBlock& b, const VocabularyCall& c) {
  const Linear& l = b.product;
  const int threads = most(1, c.threads.count);
  constexpr int kMost = 256;
  if (threads > kMost) return false;
  int rows = 0;
  for (int64_t text = 0; text < c.batch; text++) rows += static_cast<int>(c.lengths ? c.lengths[text] : c.seq);
  uint8_t *codes = nullptr, *broken = nullptr;
  RowScale* scales = nullptr;
  int *row_list = nullptr, *text_of = nullptr;
  float* row_of[kMost];
  Cutter cutter{nullptr, 0};
  for (int pass = 0; pass < 2; pass++) {
    codes = cutter.cut<uint8_t>(static_cast<size_t>(rows_padded(rows)) * l.steps * kStepBytes);
    scales = cutter.cut<RowScale>(static_cast<size_t>(rows_padded(rows)));
    row_list = cutter.cut<int>(static_cast<size_t>(rows) + 1);
    text_of = cutter.cut<int>(static_cast<size_t>(rows) + 1);
    broken = cutter.cut<uint8_t>(static_cast<size_t>(rows) + 1);
    for (int i = 0; i < threads; i++) row_of[i] = cutter.cut<float>(2 * static_cast<size_t>(b.width_pad));
    if (pass) break;
    uint8_t* base = static_cast<uint8_t*>(scratch_take(cutter.used));
    if (!base) return false;
    cutter = {base, 0};
  }
  int count = 0;
  for (int64_t text = 0; text < c.batch; text++) {
    const int length = static_cast<int>(c.lengths ? c.lengths[text] : c.seq);
    for (int t = 0; t < length; t++, count++) row_list[count] = static_cast<int>(text * c.seq + t), text_of[count] = static_cast<int>(text);
    float* y = c.y + static_cast<size_t>(text) * l.n;
    const float least_value = length ? -__builtin_inff() : 0.f;
    for (int i = 0; i < l.n; i++) y[i] = least_value;
  }
  constexpr int kPiece = 8;
  for_each(c.threads, (rows + kPiece - 1) / kPiece, [&](int piece, int worker) {
    const auto row = [&](int r, int turn) {
      const float* x = c.x + static_cast<size_t>(row_list[r]) * b.width;
      float* copy = row_of[worker] + turn * b.width_pad;
      if (b.width != b.width_pad) copy_row(x, b.width, copy), x = copy;
      vf odd = set1(0.f);
      for (int i = 0; i < b.width_pad; i += VL) odd = fma(load(x + i), set1(0.f), odd);
      broken[r] = reduce_add(odd) != 0.f;  // NaN or infinity: a maximum would pass over the NaN that comes from it
      return x;
    };
    encode<F>(piece * kPiece, least(kPiece, rows - piece * kPiece), b.width_pad, row, codes, l.steps, scales);
  });
  // Threads share the table, not the rows: two of them never write the same number.
  const int panels = l.n_pad / kPanel, each = threads > 1 ? most(1, panels / (3 * threads)) : panels;
  for_each(c.threads, (panels + each - 1) / each, [&](int i, int) {
    for (int first = 0; first < rows; first += kVocabularyRows)
      product<F>(l, codes, first, least(kVocabularyRows, rows - first), i * each, least(each, panels - i * each),
                 [&](int panel, int row, int many, const int32_t* sum) {
                   const Columns<F> columns(l, panel);
                   const int left = l.n - panel * kPanel;
                   for (int r = row; r < row + many;) {
                     const int text = text_of[r];
                     vf best[kPanel / VL];
                     for (int v = 0; v < kPanel / VL; v++) best[v] = set1(-__builtin_inff());
                     for (; r < row + many && text_of[r] == text; r++, sum += kPanel) {
#pragma GCC unroll 8
                       for (int v = 0; v < kPanel / VL; v++) best[v] = vmax(best[v], columns.value(v, sum, scales[r]));
                     }
                     float* to = c.y + static_cast<size_t>(text) * l.n + panel * kPanel;
                     for (int v = 0; v < kPanel / VL && v * VL < left; v++) {
                       const int here = left - v * VL;
                       if (here >= VL)
                         store(to + v * VL, vmax(load(to + v * VL), best[v]));
                       else
                         store_first(to + v * VL, vmax(load_first(to + v * VL, here), best[v]), here);
                     }
                   }
                 });
  });
  for (int r = 0; r < rows; r++)
    if (broken[r]) {
      float* y = c.y + static_cast<size_t>(text_of[r]) * l.n;
      for (int i = 0; i < l.n; i++) y[i] = __builtin_nanf("");
    }
  scratch_give(cutter.base);
  return true;
}
