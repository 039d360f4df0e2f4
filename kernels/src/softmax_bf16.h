// Scores to weights in bfloat16 with AVX-512. Included inside an anonymous namespace, after simd_avx512.h.

constexpr float kLowest = -__builtin_inff();  // of a query whose scores all are that, the sum of weights is zero, and the result NaN

// What is done to the scores of one block of queries. Query r reads keys from[r] to until[r] - 1.
struct Scoring {
  float by;      // from scores to exponents of two
  bool careful;  // there is a bias, or scores may be NaN
  int from[16], until[16], latest, earliest;
  const float* bias[16];

  // Whether the scores of 32 keys from j on stay as they are.
  INLINE bool plain(int j) const { return !careful && j >= latest && j + 32 <= earliest; }
  // 16 scores of query r, of keys from j on: with its bias, as exponents of two if there is one, and without keys outside of its range.
  INLINE vf finished(vf s, int r, int j) const {
    if (bias[r]) {
      const int left = until[r] - j;
      const vf extra = left >= VL ? load(bias[r] + j) : left > 0 ? load_first(bias[r] + j, left) : set1(0.f);
      s = fma(s, set1(by), mul(extra, set1(1.44269504f)));
    }
    return keep(s, j, from[r], until[r], set1(kLowest));
  }
  // The larger of each two, or NaN if either is NaN.
  static INLINE vf larger(vf a, vf b) { return _mm512_mask_add_ps(vmax(a, b), _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q), a, b); }
  INLINE float largest(vf top) const {
    return careful && _mm512_cmp_ps_mask(top, top, _CMP_UNORD_Q) ? __builtin_nanf("") : reduce_max(top);
  }
};

// 2^x as bfloat16 has the bits (256 * (1 + x) - this + 1) / 2, for x = i / 128 and i / 128 + 1 / 256: the numbers with the smallest error.
alignas(64) constexpr uint8_t kBelowLine[128] = {
    1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 7, 7, 8, 9, 9, 9, 10, 11, 11, 11, 12, 12, 13, 13, 13, 14, 14, 15, 15, 15, 16, 16, 17, 17, 17, 17,
    18, 18, 18, 19, 19, 19, 19, 20, 20, 20, 20, 21, 21, 21, 21, 21, 21, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 23,
    23, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 21, 21, 21, 21, 21, 20, 20, 20, 20, 19, 19, 19, 18, 18, 18, 18, 17, 17, 16,
    16, 16, 15, 15, 14, 14, 14, 13, 12, 12, 12, 11, 10, 10, 9, 8, 8, 7, 7, 6, 6, 5, 4, 3, 2, 2, 1,
};

// Scores to weights, 2^(score * by - largest), 32 at once in 16 bits each. An exponent in steps of 1/256, with the bias of a float's, cut to zero
// below, is a bfloat16 with one bit too many, but for 2^x not being 1 + x between powers of two: a table has the difference. The error is 0.5%
// (root of the mean square: 0.19%); rounding what is exact to bfloat16 has 0.4% (0.17%). A polynomial in float32, rounded, takes 2.5 times as
// long. A score of NaN gives zero.
struct Weigher {
  vi low, high;
  vf by;
  explicit INLINE Weigher(float factor)
      : low(_mm512_load_si512(kBelowLine)), high(_mm512_load_si512(kBelowLine + 64)), by(set1(factor * 256.f)) {}
  INLINE vf minus(float top) const { return fma(set1(-top), by, set1(127.f * 256.f)); }
  INLINE vi exponents(const float* scores, vf minus) const { return _mm512_cvtps_epi32(fma(load(scores), by, minus)); }
  INLINE vi power(vi exponent) const {
    const vi below = _mm512_maskz_permutex2var_epi8(0x5555555555555555, low, _mm512_srli_epi16(exponent, 1), high);
    return _mm512_avg_epu16(_mm512_subs_epu16(exponent, below), _mm512_setzero_si512());  // half of it, rounded up
  }
  // Weights of 32 scores, by kPairOrder.
  INLINE vi two(const float* scores, vf minus) const {
    const vi both = _mm512_packs_epi32(exponents(scores, minus), exponents(scores + VL, minus));
    return power(_mm512_max_epi16(both, _mm512_setzero_si512()));
  }
  // Weights of 16 scores, in order, and 16 zeros.
  INLINE vi one(const float* scores, vf minus) const {
    const __m256i half = _mm256_max_epi16(_mm512_cvtsepi32_epi16(exponents(scores, minus)), _mm256_setzero_si256());
    return power(_mm512_zextsi256_si512(half));
  }
};
// Which pair of 32 keys each pair of weights belongs to: _mm512_packs_epi32 takes four numbers of each vector in turns.
constexpr int kPairOrder[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};

// Scores of R queries, whose largest are `top`, to weights, not yet divided by their sums, and the sums' reciprocals. Blocks of 32 keys from
// `begin` to `end`, of which the last has 16 if `half`. What is added up is the weights as they are, rounded.
template <int R>
static INLINE void weigh(const float* scores, uint32_t* weights, size_t pitch, int begin, int end, bool half, float by, const float* top,
                         float* reciprocal) {
  const Weigher weigher(by);
  const vf ones = (vf)_mm512_set1_epi32(0x3f803f80);
  vf minus[R], sum[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) minus[r] = weigher.minus(top[r]), sum[r] = set1(0.f);
  int j = begin;
  for (; j < (half ? end - 32 : end); j += 32) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const vi two = weigher.two(scores + r * pitch + j, minus[r]);
      mix(sum[r], (vf)two, ones);
      _mm512_storeu_si512(weights + (r * pitch + j) / 2, two);
    }
  }
  if (half) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const vi one = weigher.one(scores + r * pitch + j, minus[r]);
      mix(sum[r], (vf)one, ones);
      _mm512_storeu_si512(weights + (r * pitch + j) / 2, one);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) reciprocal[r] = 1.f / reduce_add(sum[r]);
}

// The largest magnitude of many rows of 32 bfloat16.
struct Largest16 {
  vi bits = _mm512_setzero_si512();
  INLINE void see(const uint32_t* row) {
    bits = _mm512_max_epu16(bits, _mm512_and_si512(_mm512_loadu_si512(row), _mm512_set1_epi16(0x7fff)));
  }
  INLINE bool reaches(int exponent) const { return _mm512_cmpge_epu16_mask(bits, _mm512_set1_epi16(static_cast<short>((127 + exponent) << 7))); }
};
