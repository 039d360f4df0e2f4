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

template <Form F>
static INLINE vf sums(const int32_t* c) {
  if (F == Form::kBFloat16) return load(reinterpret_cast<const float*>(c));
  return to_float(c);
}

// c[R][32] = the sums of R rows (`a`, of a tile) and a panel (`b`), while between(step) does something else after each step.
// ahead: a part of the next panel, brought into the second-level cache meanwhile, `each_step` bytes a step. The CPU's own prefetching stops at
// pages of 4 KB, and a short text is bound by how fast its weights come. All rows share the panel: at once, it would hold up the loads that
// this product waits for.
template <Form F, int R, class Between>
static INLINE void dot_rows(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead, int each_step,
                            const Between& between) {
  vi sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (int k = 0; k < steps; k++, a += kTile * kStepBytes, b += 2 * 16 * kStepBytes) {
    for (const uint8_t* stop = ahead + each_step; ahead < stop; ahead += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
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
    between(k);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    _mm512_store_si512(c + r * kPanel, sum[r][0]);
    _mm512_store_si512(c + r * kPanel + 16, sum[r][1]);
  }
}

template <Form F, int R>
static __attribute__((noinline)) void dot_few(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead, int each_step) {
  dot_rows<F, R>(a, steps, b, c, ahead, each_step, [](int) {});
}

template <Form F>
static void dot_up_to(int rows, const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead, int each_step) {
  switch (rows) {
    case 1: return dot_few<F, 1>(a, steps, b, c, ahead, each_step);
    case 2: return dot_few<F, 2>(a, steps, b, c, ahead, each_step);
    case 3: return dot_few<F, 3>(a, steps, b, c, ahead, each_step);
    case 4: return dot_few<F, 4>(a, steps, b, c, ahead, each_step);
    case 5: return dot_few<F, 5>(a, steps, b, c, ahead, each_step);
    case 6: return dot_few<F, 6>(a, steps, b, c, ahead, each_step);
    case 7: return dot_few<F, 7>(a, steps, b, c, ahead, each_step);
    case 8: return dot_few<F, 8>(a, steps, b, c, ahead, each_step);
  }
}

// Sums that wait for their epilogue.
struct Waiting {
  int panel, row, count;
  const int32_t* sums;
};

// Eight rows, with the epilogue of others between the steps.
template <Form F, class Epilogue>
static __attribute__((noinline)) void dot_tile(const uint8_t* a, int steps, const uint8_t* b, int32_t* c, const uint8_t* ahead, int each_step,
                                               Waiting w, const Epilogue& epilogue) {
  const int each = (w.count + steps - 1) / steps;
  dot_rows<F, kTile>(a, steps, b, c, ahead, each_step, [&](int) __attribute__((always_inline)) {
    if (w.count <= 0) return;
    const int now = least(each, w.count);
    epilogue(w.panel, w.row, now, w.sums);
    w.row += now, w.count -= now, w.sums += now * kPanel;
  });
}

// epilogue(panel, first row, rows, sums [rows][32]) for all rows from `first` (a multiple of kTile) and the panels.
// a: [rows / kTile][steps][kTile][64 bytes].
// The epilogue works on the sums before these. Right after its own product it would fill the CPU's queues with what waits for the last sums, and
// the next product could not begin.
template <Form F, class Epilogue>
static void product(const Linear& l, const uint8_t* a, int first, int rows, int panel, int panels, const Epilogue& epilogue) {
  alignas(64) int32_t c[2][kTile * kPanel];
  Waiting waiting{0, 0, 0, nullptr};
  int turn = 0;
  const int blocks = (rows + kTile - 1) / kTile;
  for (int p = panel; p < panel + panels; p++) {
    const uint8_t* b = l.weights + static_cast<size_t>(p) * l.steps * 2048;
    const int each_step = p + 1 < panel + panels ? (2048 / 64 + blocks - 1) / blocks * 64 : 0;
    for (int r = first; r < first + rows; r += kTile, turn ^= 1) {
      const int count = least(kTile, first + rows - r);
      const uint8_t* from = a + static_cast<size_t>(r) * l.steps * kStepBytes;
      const uint8_t* ahead = b + static_cast<size_t>(l.steps) * (2048 + (r - first) / kTile * each_step);
      if (count == kTile) {
        dot_tile<F>(from, l.steps, b, c[turn], ahead, each_step, waiting, epilogue);
      } else {
        dot_up_to<F>(count, from, l.steps, b, c[turn], ahead, each_step);
        if (waiting.count) epilogue(waiting.panel, waiting.row, waiting.count, waiting.sums);
      }
      waiting = {p, r, count, c[turn]};
    }
  }
  if (waiting.count) epilogue(waiting.panel, waiting.row, waiting.count, waiting.sums);
}
