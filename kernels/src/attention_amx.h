// Small products of attention in bfloat16 with AMX tiles. Included inside an anonymous namespace.
constexpr int kQueryRows = 16;

INLINE void mix(vf& sum, vf a, vf b) { sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

#include "softmax_bf16.h"

// c[16][columns] = a[16][k] * b[k][32] in units of 4 bytes; k is a multiple of 16, columns are 16 or 32. Each 16 units of `a` are `a_step` after
// those before. All 16 rows of `a` are read.
static void mix_tiles(const uint32_t* a, size_t lda, size_t a_step, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  TILE_BARRIER;
  TILE_ZERO(0);
  if (columns > 16) TILE_ZERO(1);
  for (int i = 0; i < k; i += 16, a += a_step) {
    TILE_LOAD(4, a, lda * 4);
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

// Scores of the queries and the keys from `begin` to `end`, blocks of 32, of which the last has 16 if `half`. top: the largest score of each.
static void score(int rows, const uint32_t* q, size_t panel_pitch, const uint32_t* keys, int depth, int begin, int end, bool half,
                  const Scoring& s, float* scores, size_t pitch, float* top) {
  for (int j = begin; j < end; j += 32)
    mix_tiles(q, 16, panel_pitch, keys + static_cast<size_t>(j) * depth, depth, half && j + 32 == end ? 16 : 32, scores + j, pitch);
  const int stop = half ? end - 16 : end;
  for (int r = 0; r < rows; r++) {
    float* row = scores + r * pitch;
    vf best = set1(kLowest);
    for (int j = begin; j < stop; j += 16) {
      if (s.plain(j)) {
        best = vmax(best, load(row + j));
      } else {
        const vf finished = s.finished(load(row + j), r, j);
        best = s.larger(best, finished);
        store(row + j, finished);
      }
    }
    top[r] = s.largest(best);
  }
}

// c[rows][32] = weights[rows][pairs] * values[pairs][32] * by[rows]. Weights and values are zero up to whole 16 pairs.
static void mix(int rows, const uint32_t* weights, size_t pitch, const uint32_t* values, int pairs, const float* by, float* c, size_t c_pitch,
                float* tiles) {
  mix_tiles(weights, pitch, 16, values, round_up(pairs, 16), 32, tiles, 32);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 32; i += VL) store(c + r * c_pitch + i, mul(load(tiles + r * 32 + i), set1(by[r])));
}
