// Products with the matrix instructions of Armv8.6, each of which adds 2 rows by 2 columns of 8 bytes: 8 rows by 8 columns in 16
// accumulators. Included inside an anonymous namespace.
constexpr int kTile = 8;
constexpr int kProductRows = 8;

// sum: [2 rows][2 columns]. a and b: 8 bytes of two rows, and of two columns.
template <Form F>
INLINE vi matrix_dot(vi sum, int8x16_t a, int8x16_t b) {
  if (F == Form::kInt8) return vmmlaq_s32(sum, a, b);
  return vreinterpretq_s32_f32(vbfmmlaq_f32(vreinterpretq_f32_s32(sum), vreinterpretq_bf16_s8(a), vreinterpretq_bf16_s8(b)));
}

// ahead: where the next panel begins, brought into the cache meanwhile, or null.
template <Form F, int R>
static void dot_rows(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead) {
  constexpr int kPairs = (R + 1) / 2;
  for (int eight = 0; eight < 4; eight++) {  // columns
    vi sum[kPairs][4];
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; p++) sum[p][0] = sum[p][1] = sum[p][2] = sum[p][3] = vdupq_n_s32(0);
    const int8_t *x = reinterpret_cast<const int8_t*>(a), *w = reinterpret_cast<const int8_t*>(b) + eight / 2 * 1024 + eight % 2 * 64;
    for (int k = 0; k < steps; k++, x += kTile * kStepBytes, w += 2048) {
      if (ahead) {
        for (int i = 0; i < 8; i++) __builtin_prefetch(ahead + i * 64, 0, 2);
        ahead += 512;
      }
      for (int i = 0; i < kStepBytes; i += 16) {
        // 8 bytes of two rows side by side; the last one of an odd number stands for its neighbour too.
        int8x16_t first[kPairs], second[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; p++) {
          const int64x2_t even = vreinterpretq_s64_s8(vld1q_s8(x + 2 * p * kStepBytes + i));
          const int64x2_t odd = 2 * p + 1 < R ? vreinterpretq_s64_s8(vld1q_s8(x + (2 * p + 1) * kStepBytes + i)) : even;
          first[p] = vreinterpretq_s8_s64(vzip1q_s64(even, odd));
          second[p] = vreinterpretq_s8_s64(vzip2q_s64(even, odd));
        }
        const int8_t* from = w + i * 16;
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const int8x16_t b0 = vld1q_s8(from + j * 16), b1 = vld1q_s8(from + 128 + j * 16);
#pragma GCC unroll 4
          for (int p = 0; p < kPairs; p++) {
            sum[p][j] = matrix_dot<F>(sum[p][j], first[p], b0);
            sum[p][j] = matrix_dot<F>(sum[p][j], second[p], b1);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; p++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        int32_t* to = c + 2 * p * kPanel + eight * 8 + j * 2;
        vst1_s32(to, vget_low_s32(sum[p][j]));
        if (2 * p + 1 < R) vst1_s32(to + kPanel, vget_high_s32(sum[p][j]));
      }
  }
}
