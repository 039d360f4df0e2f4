// Vectors of 8 floats for AVX2 with FMA. Included inside an anonymous namespace of a variant's file.
typedef __m256 vf;
typedef __m256i vi;
constexpr int VL = 8;
constexpr bool kAnyExponent = false;  // 2^floor(t) is right from -126 on

#define INLINE inline __attribute__((always_inline))

INLINE vi lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
INLINE vi first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes()); }

INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
INLINE vf load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }  // n < 8
INLINE void store_first(float* p, vf v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
INLINE vf set1(float x) { return _mm256_set1_ps(x); }
INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf divide(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
// Both give b if either is NaN: constants come first, so that NaN goes through.
INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vabs(vf a) { return _mm256_andnot_ps(set1(-0.f), a); }
INLINE float reduce_add(vf a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
INLINE float reduce_max(vf a) {
  const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
// Bits of floats, compared as whole numbers.
INLINE vi no_bits() { return _mm256_setzero_si256(); }
INLINE vi load_bits(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const vi*>(p)); }
INLINE vi max_signed(vi a, vi b) { return _mm256_max_epi32(a, b); }
INLINE vi max_unsigned(vi a, vi b) { return _mm256_max_epu32(a, b); }
INLINE float reduce_max_signed(vi a) {
  const __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1))));
}
INLINE float reduce_max_unsigned(vi a) {
  const __m128i half = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xb1))));
}
INLINE vf to_float(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const vi*>(p))); }
// Lane i stays if lo <= first + i < hi; the others become `other`.
INLINE vf keep(vf v, int first, int lo, int hi, vf other) {
  const vi lane = _mm256_add_epi32(lanes(), _mm256_set1_epi32(first));
  const vi mask = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(lo), lane), _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane));
  return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(mask));
}
INLINE vf fraction_above_floor(vf t) { return sub(t, _mm256_floor_ps(t)); }
// p * 2^floor(t), for floor(t) from -126 to 1.
INLINE vf times_power_of_floor(vf p, vf t) {
  const vi exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(t)), _mm256_set1_epi32(127));
  return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

INLINE vi rounded(const float* x, vf inverse, vf zero) { return _mm256_cvtps_epi32(fma(load(x), inverse, zero)); }

// 64 floats to 64 codes: round(x * inverse + zero point), cut to a byte.
INLINE void codes8(uint8_t* to, const float* x, vf inverse, vf zero) {
  const vi order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < 64; i += 32, x += 32) {
    const vi ab = _mm256_packs_epi32(rounded(x, inverse, zero), rounded(x + 8, inverse, zero));
    const vi cd = _mm256_packs_epi32(rounded(x + 16, inverse, zero), rounded(x + 24, inverse, zero));
    _mm256_storeu_si256(reinterpret_cast<vi*>(to + i), _mm256_permutevar8x32_epi32(_mm256_packus_epi16(ab, cd), order));
  }
}

// 32 floats to 32 codes of 16 bits, from 0 to 255.
INLINE void codes16(uint8_t* to, const float* x, vf inverse, vf zero) {
  const vi most = _mm256_set1_epi16(255);
  for (int i = 0; i < 64; i += 32, x += 16) {
    const vi ab = _mm256_packus_epi32(rounded(x, inverse, zero), rounded(x + 8, inverse, zero));
    _mm256_storeu_si256(reinterpret_cast<vi*>(to + i), _mm256_permute4x64_epi64(_mm256_min_epu16(ab, most), 0xd8));
  }
}

INLINE void transpose8(const uint32_t* from, size_t stride, uint32_t* to) {
  vf r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = load(reinterpret_cast<const float*>(from + i * stride));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    store(reinterpret_cast<float*>(to + i * 32), _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
    store(reinterpret_cast<float*>(to + (4 + i) * 32), _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
  }
}

// 16 rows of 16 dwords, `stride` dwords apart, to their transpose with rows of 32 dwords.
INLINE void transpose16(const uint32_t* from, size_t stride, uint32_t* to) {
  for (int r = 0; r < 16; r += 8)
    for (int c = 0; c < 16; c += 8) transpose8(from + r * stride + c, stride, to + c * 32 + r);
}
