// Products with AVX-512: 8 rows by 32 columns in 16 accumulators. Included inside an anonymous namespace.
constexpr int kTile = 8;       // rows whose steps lie together
constexpr int kProductRows = 8;  // rows of one call of an epilogue

// The dot product instructions as assembly: GCC 12 copies accumulators around its intrinsics.
template <Form F>
INLINE void dot(vi& sum, vi a, vi b) {
  if (F == Form::kInt8)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#if HAS_BF16
  else
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#endif
}

// ahead: where the next panel begins, brought into the second-level cache meanwhile, or null. The CPU's own prefetching stops at
// pages of 4 KB, and a short text is bound by how fast its weights come.
template <Form F, int R>
static void dot_rows(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead) {
  vi sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (int k = 0; k < steps; k++, a += kTile * kStepBytes, b += 2 * 16 * kStepBytes) {
    if (ahead) {
#pragma GCC unroll 32
      for (int i = 0; i < 32; i++) _mm_prefetch(reinterpret_cast<const char*>(ahead + i * 64), _MM_HINT_T1);
      ahead += 2048;
    }
#pragma GCC unroll 4
    for (int j = 0; j < 16; j++) {
      const vi b0 = _mm512_load_si512(b + j * 64), b1 = _mm512_load_si512(b + 1024 + j * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        int32_t four;
        __builtin_memcpy(&four, a + r * kStepBytes + j * 4, 4);
        const vi x = _mm512_set1_epi32(four);
        dot<F>(sum[r][0], x, b0);
        dot<F>(sum[r][1], x, b1);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    _mm512_store_si512(c + r * kPanel, sum[r][0]);
    _mm512_store_si512(c + r * kPanel + 16, sum[r][1]);
  }
}
