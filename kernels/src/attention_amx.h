// Small products of attention in bfloat16 with AMX tiles. Included inside an anonymous namespace.
#define MIX_TILES
constexpr int kQueryRows = 16;
constexpr int kPair = 2;  // numbers in 4 bytes

// c[16][columns, to whole 16] = a[16][k] * b[k][32] in units of 4 bytes; k is a multiple of 16. All 16 rows of a are read.
static void mix_up_to(int, const uint32_t* a, size_t lda, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  TILE_BARRIER;
  TILE_ZERO(0);
  if (columns > 16) TILE_ZERO(1);
  for (int i = 0; i < k; i += 16) {
    TILE_LOAD(4, a + i, lda * 4);
    TILE_LOAD(6, b + static_cast<size_t>(i) * 32, 128);
    TILE_DOT_BF16(0, 4, 6);
    if (columns > 16) {
      TILE_LOAD(7, b + static_cast<size_t>(i) * 32 + 16, 128);
      TILE_DOT_BF16(1, 4, 7);
    }
  }
  TILE_STORE(0, c, ldc * 4);
  if (columns > 16) TILE_STORE(1, c + 16, ldc * 4);
  TILE_BARRIER;
}
