// Vectors of 4 floats for AArch64. Included inside an anonymous namespace of a variant's file.
typedef float32x4_t vf;
typedef int32x4_t vi;
constexpr int VL = 4;
constexpr bool kAnyExponent = false;  // 2^floor(t) is right from -126 on

#define INLINE inline __attribute__((always_inline))

INLINE vf load(const float* p) { return vld1q_f32(p); }
INLINE void store(float* p, vf v) { vst1q_f32(p, v); }
INLINE vf load_first(const float* p, int n) {  // n < 4
  float some[4] = {};
  for (int i = 0; i < n; i++) some[i] = p[i];
  return vld1q_f32(some);
}
INLINE void store_first(float* p, vf v, int n) {
  float some[4];
  vst1q_f32(some, v);
  for (int i = 0; i < n; i++) p[i] = some[i];
}
INLINE vf set1(float x) { return vdupq_n_f32(x); }
INLINE vf add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf divide(vf a, vf b) { return vdivq_f32(a, b); }
INLINE vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
// Both give NaN if either is NaN.
INLINE vf vmax(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf vmin(vf a, vf b) { return vminq_f32(a, b); }
INLINE vf vabs(vf a) { return vabsq_f32(a); }
INLINE float reduce_add(vf a) { return vaddvq_f32(a); }
INLINE float reduce_max(vf a) { return vmaxvq_f32(a); }
// Bits of floats, compared as whole numbers.
INLINE vi no_bits() { return vdupq_n_s32(0); }
INLINE vi load_bits(const float* p) { return vreinterpretq_s32_f32(vld1q_f32(p)); }
INLINE vi max_signed(vi a, vi b) { return vmaxq_s32(a, b); }
INLINE vi max_unsigned(vi a, vi b) { return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b))); }
INLINE float reduce_max_signed(vi a) { return vget_lane_f32(vreinterpret_f32_s32(vdup_n_s32(vmaxvq_s32(a))), 0); }
INLINE float reduce_max_unsigned(vi a) { return vget_lane_f32(vreinterpret_f32_u32(vdup_n_u32(vmaxvq_u32(vreinterpretq_u32_s32(a)))), 0); }
INLINE vf to_float(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
// Lane i stays if lo <= first + i < hi; the others become `other`.
INLINE vf keep(vf v, int first, int lo, int hi, vf other) {
  const int32_t counted[4] = {first, first + 1, first + 2, first + 3};
  const vi lane = vld1q_s32(counted);
  const uint32x4_t mask = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(lo)), vcltq_s32(lane, vdupq_n_s32(hi)));
  return vbslq_f32(mask, v, other);
}
INLINE vf fraction_above_floor(vf t) { return vsubq_f32(t, vrndmq_f32(t)); }
// p * 2^floor(t), for floor(t) from -126 to 1.
INLINE vf times_power_of_floor(vf p, vf t) {
  const vi exponent = vaddq_s32(vcvtq_s32_f32(vrndmq_f32(t)), vdupq_n_s32(127));
  return mul(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

// 64 floats to 64 codes: round(x * inverse + zero point), cut to 0 to 255 and stored less 128: the dot product is of signed bytes.
INLINE void codes8(uint8_t* to, const float* x, vf inverse, vf zero) {
  for (int i = 0; i < 64; i += 16, x += 16) {
    uint16x4_t part[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) part[j] = vqmovun_s32(vcvtnq_s32_f32(fma(load(x + j * 4), inverse, zero)));
    const uint8x16_t codes = vcombine_u8(vqmovn_u16(vcombine_u16(part[0], part[1])), vqmovn_u16(vcombine_u16(part[2], part[3])));
    vst1q_u8(to + i, veorq_u8(codes, vdupq_n_u8(0x80)));
  }
}

INLINE void transpose4(const uint32_t* from, size_t stride, uint32_t* to) {
  const uint32x4_t r0 = vld1q_u32(from), r1 = vld1q_u32(from + stride), r2 = vld1q_u32(from + 2 * stride), r3 = vld1q_u32(from + 3 * stride);
  const uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(r0, r1)), b = vreinterpretq_u64_u32(vtrn2q_u32(r0, r1));
  const uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(r2, r3)), d = vreinterpretq_u64_u32(vtrn2q_u32(r2, r3));
  vst1q_u32(to, vreinterpretq_u32_u64(vtrn1q_u64(a, c)));
  vst1q_u32(to + 32, vreinterpretq_u32_u64(vtrn1q_u64(b, d)));
  vst1q_u32(to + 64, vreinterpretq_u32_u64(vtrn2q_u64(a, c)));
  vst1q_u32(to + 96, vreinterpretq_u32_u64(vtrn2q_u64(b, d)));
}

// 16 rows of 16 dwords, `stride` dwords apart, to their transpose with rows of 32 dwords.
INLINE void transpose16(const uint32_t* from, size_t stride, uint32_t* to) {
  for (int r = 0; r < 16; r += 4)
    for (int c = 0; c < 16; c += 4) transpose4(from + r * stride + c, stride, to + c * 32 + r);
}

#if HAS_BF16
// 32 floats to 32 bfloat16, rounded to the nearest even.
INLINE void to_bf16(uint8_t* to, const float* x) {
  for (int i = 0; i < 32; i += 4) vst1_u16(reinterpret_cast<uint16_t*>(to) + i, vreinterpret_u16_bf16(vcvt_bf16_f32(load(x + i))));
}
#endif
