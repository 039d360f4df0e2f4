// Small products of attention in float32 with AVX2. Included inside an anonymous namespace.
constexpr int kQueryRows = 6;

// c[R][columns, to whole 16] = a[R][k] * b[k][32].
template <int R>
static void mix_rows(const uint32_t* a, size_t lda, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  const float *x = reinterpret_cast<const float*>(a), *w = reinterpret_cast<const float*>(b);
  for (int half = 0; half < (columns > 16 ? 2 : 1); half++, w += 16, c += 16) {
    vf sum[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = set1(0.f);
    for (int i = 0; i < k; i++) {
      const vf b0 = load(w + i * 32), b1 = load(w + i * 32 + 8);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const vf v = set1(x[r * lda + i]);
        sum[r][0] = fma(v, b0, sum[r][0]);
        sum[r][1] = fma(v, b1, sum[r][1]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) store(c + r * ldc, sum[r][0]), store(c + r * ldc + 8, sum[r][1]);
  }
}

INLINE void tiles_begin() {}
INLINE void tiles_end() {}
