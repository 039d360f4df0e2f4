// Small products of attention with AVX512-BF16: eight queries by 32 columns in 16 accumulators. Included inside an anonymous namespace.
constexpr int kQueryRows = 8;

// As assembly: GCC 12 copies accumulators around the intrinsic.
INLINE void mix(vf& sum, vf a, vf b) { asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
INLINE vf pair(const uint32_t* p) { return (vf)_mm512_set1_epi32(static_cast<int>(*p)); }

#include "softmax_bf16.h"

// Inside of a large function GCC keeps some of the sums in memory.
#define NEVER_INLINE __attribute__((noinline))

// Scores of R queries and the keys from `begin` to `end`, blocks of 32, of which the last has 16 if `half`. top: the largest score of each query,
// found while scores are in registers: the units that compare are not those that multiply.
template <int R>
static NEVER_INLINE void score_rows(const uint32_t* q, size_t panel_pitch, const uint32_t* keys, int depth, int begin, int end, bool half,
                                    const Scoring& s, float* scores, size_t pitch, float* top) {
  vf best[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) best[r] = set1(kLowest);
  int j = begin;
  for (; j < (half ? end - 32 : end); j += 32) {
    const uint32_t* b = keys + static_cast<size_t>(j) * depth;
    vf sum[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (const uint32_t *a = q, *stop = b + depth * 32; b < stop; a += panel_pitch) {
      for (int i = 0; i < 16; i++, b += 32) {
        const vf b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const vf x = pair(a + r * 16 + i);
          mix(sum[r][0], x, b0);
          mix(sum[r][1], x, b1);
        }
      }
    }
    if (s.plain(j)) {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) best[r] = vmax(best[r], vmax(sum[r][0], sum[r][1]));
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        sum[r][0] = s.finished(sum[r][0], r, j), sum[r][1] = s.finished(sum[r][1], r, j + 16);
        best[r] = s.larger(best[r], s.larger(sum[r][0], sum[r][1]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(scores + r * pitch + j, sum[r][0]), store(scores + r * pitch + j + 16, sum[r][1]);
  }
  if (half) {
    const uint32_t* b = keys + static_cast<size_t>(j) * depth;
    vf sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();
    for (const uint32_t *a = q, *stop = b + depth * 32; b < stop; a += panel_pitch) {
      for (int i = 0; i < 16; i++, b += 32) {
        const vf b0 = _mm512_load_ps(b);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) mix(sum[r], pair(a + r * 16 + i), b0);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      sum[r] = s.finished(sum[r], r, j);
      best[r] = s.larger(best[r], sum[r]);
      store(scores + r * pitch + j, sum[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) top[r] = s.largest(best[r]);
}

// c[R][32] = weights[R][pairs] * values[pairs][32] * by[R].
template <int R>
static NEVER_INLINE void mix_rows(const uint32_t* weights, size_t pitch, const uint32_t* values, int pairs, const float* by, float* c,
                                  size_t c_pitch) {
  vf sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int i = 0; i < pairs; i++, values += 32) {
    const vf b0 = _mm512_load_ps(values), b1 = _mm512_load_ps(values + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vf x = pair(weights + r * pitch + i);
      mix(sum[r][0], x, b0);
      mix(sum[r][1], x, b1);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    store(c + r * c_pitch, mul(sum[r][0], set1(by[r])));
    store(c + r * c_pitch + 16, mul(sum[r][1], set1(by[r])));
  }
}

template <int R>
struct Rows {
  static constexpr int count = R;
};
// work(Rows<rows>()).
template <class Work>
static INLINE void with_rows(int rows, const Work& work) {
  switch (rows) {
    case 1: return work(Rows<1>());
    case 2: return work(Rows<2>());
    case 3: return work(Rows<3>());
    case 4: return work(Rows<4>());
    case 5: return work(Rows<5>());
    case 6: return work(Rows<6>());
    case 7: return work(Rows<7>());
    case 8: return work(Rows<8>());
  }
}

static INLINE void score(int rows, const uint32_t* q, size_t panel_pitch, const uint32_t* keys, int depth, int begin, int end, bool half,
                         const Scoring& s, float* scores, size_t pitch, float* top) {
  with_rows(rows, [&](auto r) { score_rows<decltype(r)::count>(q, panel_pitch, keys, depth, begin, end, half, s, scores, pitch, top); });
}
static INLINE void mix(int rows, const uint32_t* weights, size_t pitch, const uint32_t* values, int pairs, const float* by, float* c,
                       size_t c_pitch, float*) {
  with_rows(rows, [&](auto r) { mix_rows<decltype(r)::count>(weights, pitch, values, pairs, by, c, c_pitch); });
}

INLINE void tiles_begin() {}
INLINE void tiles_end() {}
