// Products with AVX2: 6 rows by 16 columns in 12 accumulators. Included inside an anonymous namespace.
//
// Without AVX-VNNI, codes have 16 bits (vpmaddwd): vpmaddubsw would add two products of bytes in 16 bits, which can overflow. It takes as
// many multiplications, since vpmaddubsw needs a second one to get to 32 bits.
constexpr int kTile = 6;
constexpr int kProductRows = 6;

INLINE void dot(vi& sum, vi a, vi b) {
#if HAS_INT16
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
}

// ahead: where the next panel begins, brought into the second-level cache meanwhile, or null.
template <Form F, int R>
static void dot_rows(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead) {
  for (int half = 0; half < 2; half++) {
    vi sum[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const uint8_t *x = a, *w = b + half * 1024;
    for (int k = 0; k < steps; k++, x += kTile * kStepBytes, w += 2048) {
      if (ahead) {
        for (int i = 0; i < 16; i++) _mm_prefetch(reinterpret_cast<const char*>(ahead + i * 64), _MM_HINT_T1);
        ahead += 1024;
      }
#pragma GCC unroll 2
      for (int j = 0; j < 16; j++) {
        const vi b0 = _mm256_load_si256(reinterpret_cast<const vi*>(w + j * 64));
        const vi b1 = _mm256_load_si256(reinterpret_cast<const vi*>(w + j * 64 + 32));
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
          int32_t bytes;
          __builtin_memcpy(&bytes, x + r * kStepBytes + j * 4, 4);
          const vi v = _mm256_set1_epi32(bytes);
          dot(sum[r][0], v, b0);
          dot(sum[r][1], v, b1);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      _mm256_store_si256(reinterpret_cast<vi*>(c + r * kPanel + half * 16), sum[r][0]);
      _mm256_store_si256(reinterpret_cast<vi*>(c + r * kPanel + half * 16 + 8), sum[r][1]);
    }
  }
}
