// Products with AMX: 32 rows by 32 columns in four tiles of sums. Included inside an anonymous namespace.
constexpr int kTile = 16;
constexpr int kProductRows = 32;

template <Form F>
static INLINE vf sums(const int32_t* c) {
  if (F == Form::kBFloat16) return load(reinterpret_cast<const float*>(c));
  return to_float(c);
}

#define TILE_DOT(sum, a, b) \
  do { \
    if (F == Form::kBFloat16) \
      TILE_DOT_BF16(sum, a, b); \
    else \
      TILE_DOT_CODES(sum, a, b); \
  } while (0)

// Tiles 0 to 3 become the sums of 16 or 32 rows (two tiles of `a`) and 32 columns.
template <Form F, bool Two>
static INLINE void dot_tiles(const uint8_t* a, int steps, const uint8_t* b) {
  TILE_BARRIER;
  TILE_ZERO(0);
  TILE_ZERO(1);
  if (Two) {
    TILE_ZERO(2);
    TILE_ZERO(3);
  }
  const uint8_t* second = a + static_cast<size_t>(steps) * kTile * kStepBytes;
  for (int k = 0; k < steps; k++, a += 1024, second += 1024, b += 2048) {
    TILE_LOAD(4, a, 64);
    TILE_LOAD(6, b, 64);
    TILE_LOAD(7, b + 1024, 64);
    if (Two) TILE_LOAD(5, second, 64);
    TILE_DOT(0, 4, 6);
    TILE_DOT(1, 4, 7);
    if (Two) {
      TILE_DOT(2, 5, 6);
      TILE_DOT(3, 5, 7);
    }
  }
}

template <bool Two>
static INLINE void store_tiles(int32_t* c) {
  TILE_STORE(0, c, kPanel * 4);
  TILE_STORE(1, c + 16, kPanel * 4);
  if (Two) {
    TILE_STORE(2, c + 16 * kPanel, kPanel * 4);
    TILE_STORE(3, c + 16 * kPanel + 16, kPanel * 4);
  }
  TILE_BARRIER;
}

// epilogue(panel, first row, rows, sums [rows][32]), see products.inl. It works on one block of sums while the tiles compute the next: the
// tile unit runs beside the vector units.
template <Form F, class Epilogue>
static void product(const Linear& l, const uint8_t* a, int first, int rows, int panel, int panels, const Epilogue& epilogue) {
  alignas(64) int32_t c[2][kProductRows * kPanel];
  int last_panel = -1, last_row = 0, last_count = 0, turn = 0;
  tiles_begin();
  for (int p = panel; p < panel + panels; p++) {
    const uint8_t* b = l.weights + static_cast<size_t>(p) * l.steps * 2048;
    for (int r = first; r < first + rows; r += kProductRows, turn ^= 1) {
      const int count = least(kProductRows, first + rows - r);
      const uint8_t* from = a + static_cast<size_t>(r) * l.steps * kStepBytes;
      if (count > kTile)
        dot_tiles<F, true>(from, l.steps, b);
      else
        dot_tiles<F, false>(from, l.steps, b);
      if (last_panel >= 0) epilogue(last_panel, last_row, last_count, c[turn ^ 1]);
      if (count > kTile)
        store_tiles<true>(c[turn]);
      else
        store_tiles<false>(c[turn]);
      last_panel = p, last_row = r, last_count = count;
    }
  }
  if (last_panel >= 0) epilogue(last_panel, last_row, last_count, c[turn ^ 1]);
  tiles_end();
}
