// Small products of attention in float32 for AArch64. Included inside an anonymous namespace.
constexpr int kQueryRows = 4;

// c[R][columns, to whole 16] = a[R][k] * b[k][32].
template <int R>
static void mix_rows(const uint32_t* a, size_t lda, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  const float *x = reinterpret_cast<const float*>(a), *w = reinterpret_cast<const float*>(b);
  for (int half = 0; half < (columns > 16 ? 2 : 1); half++, w += 16, c += 16) {
    vf sum[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = set1(0.f);
    for (int i = 0; i < k; i++) {
      const vf b0 = load(w + i * 32), b1 = load(w + i * 32 + 4), b2 = load(w + i * 32 + 8), b3 = load(w + i * 32 + 12);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const float v = x[r * lda + i];
        sum[r][0] = vfmaq_n_f32(sum[r][0], b0, v);
        sum[r][1] = vfmaq_n_f32(sum[r][1], b1, v);
        sum[r][2] = vfmaq_n_f32(sum[r][2], b2, v);
        sum[r][3] = vfmaq_n_f32(sum[r][3], b3, v);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) store(c + r * ldc + i * 4, sum[r][i]);
  }
}

INLINE void tiles_begin() {}
INLINE void tiles_end() {}
