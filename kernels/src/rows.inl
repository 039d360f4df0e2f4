// What is done to one row between products: norms, residual, codes. Included inside an anonymous namespace.

// Of a row's codes: value = (code - zero point) * scale. NaN or infinity in a row make its scale NaN, and so all that comes from it.
struct RowScale {
  float scale;
  float shift;  // - zero point * scale
};

// A row [width, a multiple of 64] to codes. `to` is the row in its first step; steps are `stride` bytes apart.
template <Form F>
static INLINE RowScale encode(const float* x, int width, uint8_t* to, size_t stride) {
  if (F == Form::kBFloat16) {
#if HAS_BF16
    for (int i = 0; i < width; i += 32, to += stride) to_bf16(to, x + i);
#endif
    return {1.f, 0.f};
  }
  vf low[2] = {set1(0.f), set1(0.f)}, high[2] = {set1(0.f), set1(0.f)}, odd = set1(0.f);
  for (int i = 0; i < width; i += 2 * VL) {
    const vf a = load(x + i), b = load(x + i + VL);
    low[0] = vmin(low[0], a), high[0] = vmax(high[0], a);
    low[1] = vmin(low[1], b), high[1] = vmax(high[1], b);
    odd = fma(a, set1(0.f), fma(b, set1(0.f), odd));
  }
  const float lo = reduce_min(vmin(low[0], low[1])), hi = reduce_max(vmax(high[0], high[1]));
  const float nothing = reduce_add(odd);  // 0, or NaN
  const float span = hi - lo;
  float inverse = 0.f, zero = 0.f, scale = nothing + span * 0.f;
  if (nothing == 0.f && span * 0.f == 0.f) {
    scale = (span > 1e-30f ? span : 1e-30f) * (1.f / 255.f);
    inverse = 1.f / scale;
    zero = static_cast<float>(static_cast<int>(0.5f - lo * inverse));
  }
  const vf by = set1(inverse), from = set1(zero);
  if (F == Form::kInt8) {
    for (int i = 0; i < width; i += 64, to += stride) codes8(to, x + i, by, from);
  } else {
#if HAS_INT16
    for (int i = 0; i < width; i += 32, to += stride) codes16(to, x + i, by, from);
#endif
  }
#if SIGNED_CODES
  zero -= 128.f;
#endif
  return {scale, -zero * scale};
}

// Norm of a row whose padding (to a multiple of 64) is zero, and stays zero. In place if to == x.
static INLINE void normalize(const float* x, int width, const Norm& norm, bool rms, float epsilon, float* to) {
  const int whole = width / 64 * 64, padded = round_up(width, 64);
  const vf zero = set1(0.f);
  constexpr int kUnroll = 64 / VL < 4 ? 64 / VL : 4;
  float mean = 0.f;
  if (!rms) {
    vf sum[kUnroll];
    for (int u = 0; u < kUnroll; u++) sum[u] = zero;
    for (int i = 0; i < padded; i += kUnroll * VL) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; u++) sum[u] = add(sum[u], load(x + i + u * VL));
    }
    for (int u = 1; u < kUnroll; u++) sum[0] = add(sum[0], sum[u]);
    mean = reduce_add(sum[0]) / static_cast<float>(width);
  }
  const vf center = set1(mean);
  vf square[kUnroll];
  for (int u = 0; u < kUnroll; u++) square[u] = zero;
  for (int i = 0; i < whole; i += kUnroll * VL) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; u++) {
      const vf d = sub(load(x + i + u * VL), center);
      square[u] = fma(d, d, square[u]);
    }
  }
  for (int i = whole; i < padded; i += VL) {
    const vf d = keep(sub(load(x + i), center), i, 0, width, zero);
    square[0] = fma(d, d, square[0]);
  }
  for (int u = 1; u < kUnroll; u++) square[0] = add(square[0], square[u]);
  const float deviation = __builtin_sqrtf(reduce_add(square[0]) / static_cast<float>(width) + epsilon);
  const vf by = set1(1.f / deviation);
  for (int i = 0; i < padded; i += VL) {
    const vf n = mul(sub(load(x + i), center), by);
    store(to + i, fma(n, load(norm.gamma + i), load(norm.beta + i)));
  }
}

// A row of a caller's tensor, which ends at its width, to one with zeros as padding.
static INLINE void copy_row(const float* x, int width, float* to) {
  int i = 0;
  for (; i + VL <= width; i += VL) store(to + i, load(x + i));
  if (i < width) store(to + i, load_first(x + i, width - i)), i += VL;
  for (; i < round_up(width, 64); i += VL) store(to + i, set1(0.f));
}

// A row of x as the first product reads it: normalized if the block says so, with padding. May return x itself.
static INLINE const float* prepared(const Shared& s, const float* x, float* row) {
  if (!s.pre.gamma && s.width == s.width_pad) return x;
  copy_row(x, s.width, row);
  if (s.pre.gamma) normalize(row, s.width, s.pre, s.rms, s.epsilon, row);
  return row;
}

// The end of a block: `row` [width_pad], the last product with its bias, to y [width].
static INLINE void finish(const Shared& s, const float* x, float* row, float* y) {
  if (s.out.gamma) normalize(row, s.width, s.out, s.rms, s.epsilon, row);
  const float* scale = s.residual_scale;
  int i = 0;
  for (; i + VL <= s.width; i += VL)
    store(row + i, scale ? fma(load(x + i), load(scale + i), load(row + i)) : add(load(x + i), load(row + i)));
  if (i < s.width) {
    const vf last = load_first(x + i, s.width - i);
    store(row + i, scale ? fma(last, load(scale + i), load(row + i)) : add(last, load(row + i)));
  }
  if (s.post.gamma) normalize(row, s.width, s.post, s.rms, s.epsilon, row);
  for (i = 0; i + VL <= s.width; i += VL) store(y + i, load(row + i));
  if (i < s.width) store_first(y + i, load(row + i), s.width - i);
}

static INLINE void zero_floats(float* to, size_t count) {
  if (count) __builtin_memset(to, 0, count * sizeof(float));
}
