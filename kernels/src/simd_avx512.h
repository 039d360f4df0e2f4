// Vectors of 16 floats for AVX-512. Included inside an anonymous namespace of a variant's file.
typedef __m512 vf;
typedef __m512i vi;
constexpr int VL = 16;
constexpr bool kAnyExponent = true;   // 2^floor(t) is right for every t

#define INLINE inline __attribute__((always_inline))

INLINE float as_float(int bits) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits))); }
INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
INLINE vf load_first(const float* p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }  // n < 16
INLINE void store_first(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
INLINE vf set1(float x) { return _mm512_set1_ps(x); }
INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf divide(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
// Both give b if either is NaN: constants come first, so that NaN goes through.
INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vabs(vf a) { return _mm512_abs_ps(a); }
INLINE float reduce_add(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float reduce_max(vf a) { return _mm512_reduce_max_ps(a); }
// Bits of floats, compared as whole numbers.
INLINE vi no_bits() { return _mm512_setzero_si512(); }
INLINE vi load_bits(const float* p) { return _mm512_loadu_si512(p); }
INLINE vi max_signed(vi a, vi b) { return _mm512_max_epi32(a, b); }
INLINE vi max_unsigned(vi a, vi b) { return _mm512_max_epu32(a, b); }
INLINE float reduce_max_signed(vi a) { return as_float(_mm512_reduce_max_epi32(a)); }
INLINE float reduce_max_unsigned(vi a) { return as_float(static_cast<int>(_mm512_reduce_max_epu32(a))); }
INLINE vf to_float(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
// Lane i stays if lo <= first + i < hi; the others become `other`.
INLINE vf keep(vf v, int first, int lo, int hi, vf other) {
  const vi lane = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                   _mm512_set1_epi32(first));
  const __mmask16 mask = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(lo), _MM_CMPINT_NLT) &
                         _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(hi), _MM_CMPINT_LT);
  return _mm512_mask_mov_ps(other, mask, v);
}
// p(t - floor(t)) * 2^floor(t), given a polynomial p of 2^x on [0, 1).
INLINE vf fraction_above_floor(vf t) { return _mm512_reduce_ps(t, 1); }
INLINE vf times_power_of_floor(vf p, vf t) { return _mm512_scalef_ps(p, t); }

// 64 floats to 64 codes: round(x * inverse + zero point), cut to a byte.
INLINE void codes8(uint8_t* to, const float* x, vf inverse, vf zero) {
  const vi a = _mm512_cvtps_epi32(fma(load(x), inverse, zero)), b = _mm512_cvtps_epi32(fma(load(x + 16), inverse, zero));
  const vi c = _mm512_cvtps_epi32(fma(load(x + 32), inverse, zero)), d = _mm512_cvtps_epi32(fma(load(x + 48), inverse, zero));
  const vi packed = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  const vi order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, packed));
}

// 16 rows of 16 dwords, `stride` dwords apart, to their transpose with rows of 32 dwords.
INLINE void transpose16(const uint32_t* from, size_t stride, uint32_t* to) {
  vi r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(to + i * 32, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
    _mm512_storeu_si512(to + (8 + i) * 32, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    _mm512_storeu_si512(to + (4 + i) * 32, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88));
    _mm512_storeu_si512(to + (12 + i) * 32, _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd));
  }
}

#ifdef __AVX512BF16__
// 32 floats to 32 bfloat16, rounded to the nearest even.
INLINE void to_bf16(void* to, vf low, vf high) { _mm512_storeu_si512(to, (vi)_mm512_cvtne2ps_pbh(high, low)); }
INLINE void to_bf16(void* to, const float* x) { to_bf16(to, load(x), load(x + 16)); }
// Two rows of 32 bfloat16 to 32 pairs.
INLINE void pair_rows(const uint32_t* a, const uint32_t* b, uint32_t* to) {
  const vi first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35,
                                    3, 34, 2, 33, 1, 32, 0);
  const vi x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, first, y));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(x, _mm512_add_epi16(first, _mm512_set1_epi16(16)), y));
}
#endif
