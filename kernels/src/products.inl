// A product over rows and panels, with its epilogue, for variants that keep sums in registers. Included inside an anonymous
// namespace, after gemm_*.h, which says how dot_rows works.

template <Form F>
static INLINE vf sums(const int32_t* c) {
  if (F == Form::kBFloat16) return load(reinterpret_cast<const float*>(c));
  return to_float(c);
}

template <Form F>
static void dot_up_to(int rows, const uint8_t* a, int steps, const uint8_t* b, int32_t* c,
                      const uint8_t* ahead) {
  switch (rows) {
    case 1: return dot_rows<F, 1>(a, steps, b, c, ahead);
    case 2: return dot_rows<F, 2>(a, steps, b, c, ahead);
    case 3: return dot_rows<F, 3>(a, steps, b, c, ahead);
    case 4: return dot_rows<F, 4>(a, steps, b, c, ahead);
#if TILE_ROWS > 4
    case 5: return dot_rows<F, 5>(a, steps, b, c, ahead);
    case 6: return dot_rows<F, 6>(a, steps, b, c, ahead);
#endif
#if TILE_ROWS > 6
    case 7: return dot_rows<F, 7>(a, steps, b, c, ahead);
    case 8: return dot_rows<F, 8>(a, steps, b, c, ahead);
#endif
  }
}

// epilogue(panel, first row, rows, sums [rows][32]) for all rows from `first` (a multiple of kTile) and the panels.
// a: [rows / kTile][steps][kTile][64 bytes].
template <Form F, class Epilogue>
static void product(const Linear& l, const uint8_t* a, int first, int rows, int panel, int panels, const Epilogue& epilogue) {
  alignas(64) int32_t c[kTile * kPanel];
  for (int p = panel; p < panel + panels; p++) {
    const uint8_t* b = l.weights + static_cast<size_t>(p) * l.steps * 2048;
    for (int r = first; r < first + rows; r += kTile) {
      const int count = least(kTile, first + rows - r);
      dot_up_to<F>(count, a + static_cast<size_t>(r) * l.steps * kStepBytes, l.steps, b, c,
                   r == first && p + 1 < panel + panels ? b + static_cast<size_t>(l.steps) * 2048 : nullptr);
      epilogue(p, r, count, c);
    }
  }
}
