// Products with the dot product instructions of Armv8.2: 4 rows by 16 columns in 16 accumulators. Included inside an anonymous namespace.
constexpr int kTile = 4;
constexpr int kProductRows = 4;

// ahead: where the next panel begins, brought into the cache meanwhile, or null.
template <Form F, int R>
static void dot_rows(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead) {
  for (int half = 0; half < 2; half++) {
    vi sum[R][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = vdupq_n_s32(0);
    const int8_t *x = reinterpret_cast<const int8_t*>(a), *w = reinterpret_cast<const int8_t*>(b) + half * 1024;
    for (int k = 0; k < steps; k++, x += kTile * kStepBytes, w += 2048) {
      if (ahead) {
        for (int i = 0; i < 16; i++) __builtin_prefetch(ahead + i * 64, 0, 2);
        ahead += 1024;
      }
      for (int four = 0; four < 4; four++) {
        int8x16_t v[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) v[r] = vld1q_s8(x + r * kStepBytes + four * 16);
#define STEP(lane) \
  { \
    const int8_t* row = w + (four * 4 + lane) * 64; \
    const int8x16_t b0 = vld1q_s8(row), b1 = vld1q_s8(row + 16), b2 = vld1q_s8(row + 32), b3 = vld1q_s8(row + 48); \
    _Pragma("GCC unroll 4") for (int r = 0; r < R; r++) { \
      sum[r][0] = vdotq_laneq_s32(sum[r][0], b0, v[r], lane); \
      sum[r][1] = vdotq_laneq_s32(sum[r][1], b1, v[r], lane); \
      sum[r][2] = vdotq_laneq_s32(sum[r][2], b2, v[r], lane); \
      sum[r][3] = vdotq_laneq_s32(sum[r][3], b3, v[r], lane); \
    } \
  }
        STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) vst1q_s32(c + r * kPanel + half * 16 + i * 4, sum[r][i]);
  }
}
