// Small products of attention in float32 with AVX-512. Included inside an anonymous namespace.
constexpr int kQueryRows = 8;

INLINE void mix(vf& sum, vf a, vf b) { sum = fma(a, b, sum); }

// c[R][columns, to whole 16] = a[R][k] * b[k][32].
template <int R>
static void mix_rows(const uint32_t* a, size_t lda, const uint32_t* b, int k, int columns, float* c, size_t ldc) {
  vf sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  if (columns > 16) {
    for (int i = 0; i < k; i++, b += 32) {
      const vf b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const vf x = (vf)_mm512_set1_epi32(static_cast<int>(a[r * lda + i]));
        mix(sum[r][0], x, b0);
        mix(sum[r][1], x, b1);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(c + r * ldc, sum[r][0]), store(c + r * ldc + 16, sum[r][1]);
    return;
  }
  for (int i = 0; i < k; i++, b += 32) {
    const vf b0 = _mm512_load_ps(b);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) mix(sum[r][0], (vf)_mm512_set1_epi32(static_cast<int>(a[r * lda + i])), b0);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) store(c + r * ldc, sum[r][0]);
}

INLINE void tiles_begin() {}
INLINE void tiles_end() {}
