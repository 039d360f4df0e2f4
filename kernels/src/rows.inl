// What is done to one row between products: norms, residual, codes. Included inside an anonymous namespace.

// Of a row's codes: value = (code - zero point) * scale. NaN or infinity in a row make its scale NaN, and so all that comes from it.
struct RowScale {
  float scale;
  float shift;  // - zero point * scale
};

// How a row becomes codes: round(x * inverse + zero).
struct Coding {
  RowScale scale;
  float inverse, zero;
};

static INLINE Coding coding_of(const float* x, int width) {
  // Compared as whole numbers with a sign, the largest float is the largest number, and without a sign it is the smallest of those below zero.
  // Infinity is larger than that in both, and NaN than infinity. CPUs compare whole numbers faster than floats.
  vi high[2] = {no_bits(), no_bits()}, low[2] = {no_bits(), no_bits()};
  for (int i = 0; i < width; i += 2 * VL) {
    const vi a = load_bits(x + i), b = load_bits(x + i + VL);
    high[0] = max_signed(high[0], a), low[0] = max_unsigned(low[0], a);
    high[1] = max_signed(high[1], b), low[1] = max_unsigned(low[1], b);
  }
  const float hi = reduce_max_signed(max_signed(high[0], high[1])), lowest = reduce_max_unsigned(max_unsigned(low[0], low[1]));
  const float lo = lowest > 0.f ? 0.f : lowest, span = hi - lo;  // NaN in either makes this NaN
  float inverse = 0.f, zero = 0.f, scale = span * 0.f;
  if (scale == 0.f) {
    scale = (span > 1e-30f ? span : 1e-30f) * (1.f / 255.f);
    inverse = 1.f / scale;
    zero = static_cast<float>(static_cast<int>(0.5f - lo * inverse));
  }
  const float point = zero - (SIGNED_CODES ? 128.f : 0.f);
  return {{scale, -point * scale}, inverse, zero};
}

// A row [width, a multiple of 64] to codes. `to` is the row in its first step; steps are `stride` bytes apart.
template <Form F>
static INLINE void write_codes(const float* x, int width, const Coding& coding, uint8_t* to, size_t stride) {
  const vf by = set1(coding.inverse), from = set1(coding.zero);
  if (F == Form::kInt8) {
    for (int i = 0; i < width; i += 64, to += stride) codes8(to, x + i, by, from);
  } else if (F == Form::kInt16) {
#if HAS_INT16
    for (int i = 0; i < width; i += 32, to += stride) codes16(to, x + i, by, from);
#endif
  } else {
#if HAS_BF16
    for (int i = 0; i < width; i += 32, to += stride) to_bf16(to, x + i);
#endif
  }
}

// Sums of a row in as many parts as hide the latency of an addition.
struct RowSum {
  static constexpr int kParts = 64 / VL < 4 ? 64 / VL : 4;
  vf part[kParts];
  INLINE RowSum() {
    for (int u = 0; u < kParts; u++) part[u] = set1(0.f);
  }
  INLINE float total() {
    for (int u = 1; u < kParts; u++) part[0] = add(part[0], part[u]);
    return reduce_add(part[0]);
  }
};

static INLINE RowSum sum_of(const float* x, int padded) {
  RowSum sum;
  for (int i = 0; i < padded; i += RowSum::kParts * VL) {
#pragma GCC unroll 4
    for (int u = 0; u < RowSum::kParts; u++) sum.part[u] = add(sum.part[u], load(x + i + u * VL));
  }
  return sum;
}

// Norm of a row whose padding (to a multiple of 64) is zero, given its sum (of no use to an RMS norm), to as many columns of `to` as `columns` says:
// the width, or with padding, which stays zero. In place if to == x.
static INLINE void normalize(const float* x, int width, RowSum sum, const Norm& norm, bool rms, float epsilon, float* to, int columns) {
  const int whole = width / 64 * 64, padded = round_up(width, 64);
  const vf zero = set1(0.f), center = set1(rms ? 0.f : sum.total() / static_cast<float>(width));
  RowSum square;
  for (int i = 0; i < whole; i += RowSum::kParts * VL) {
#pragma GCC unroll 4
    for (int u = 0; u < RowSum::kParts; u++) {
      const vf d = sub(load(x + i + u * VL), center);
      square.part[u] = fma(d, d, square.part[u]);
    }
  }
  for (int i = whole; i < padded; i += VL) {
    const vf d = keep(sub(load(x + i), center), i, 0, width, zero);
    square.part[0] = fma(d, d, square.part[0]);
  }
  const float deviation = __builtin_sqrtf(square.total() / static_cast<float>(width) + epsilon);
  const vf by = set1(1.f / deviation);
  int i = 0;
  for (; i + VL <= columns; i += VL) store(to + i, fma(mul(sub(load(x + i), center), by), load(norm.gamma + i), load(norm.beta + i)));
  if (i < columns)
    store_first(to + i, fma(mul(sub(load(x + i), center), by), load(norm.gamma + i), load(norm.beta + i)), columns - i);
}

static INLINE void normalize_in_place(float* x, const Shared& s, const Norm& norm) {
  normalize(x, s.width, s.rms ? RowSum() : sum_of(x, s.width_pad), norm, s.rms, s.epsilon, x, s.width_pad);
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
  if (s.pre.gamma) normalize_in_place(row, s, s.pre);
  return row;
}

// The end of a block: `row` [width_pad], the last product with its bias, to y [width].
static INLINE void finish(const Shared& s, const float* x, float* row, float* y) {
  if (s.out.gamma) normalize_in_place(row, s, s.out);
  const float* scale = s.residual_scale;
  const auto with_residual = [&](vf residual, int i) {
    return scale ? fma(residual, load(scale + i), load(row + i)) : add(residual, load(row + i));
  };
  int i = 0;
  if (!s.post.gamma) {
    for (; i + VL <= s.width; i += VL) store(y + i, with_residual(load(x + i), i));
    if (i < s.width) store_first(y + i, with_residual(load_first(x + i, s.width - i), i), s.width - i);
    return;
  }
  // The norm's sum is of what has just been computed: a pass less.
  RowSum sum;
  constexpr int kParts = RowSum::kParts;
  for (; i + kParts * VL <= s.width; i += kParts * VL) {
#pragma GCC unroll 4
    for (int u = 0; u < kParts; u++) {
      const vf v = with_residual(load(x + i + u * VL), i + u * VL);
      sum.part[u] = add(sum.part[u], v);
      store(row + i + u * VL, v);
    }
  }
  for (int u = 0; i < s.width_pad; i += VL, u++) {
    const int left = s.width - i;
    const vf v = left >= VL ? with_residual(load(x + i), i) : left > 0 ? with_residual(load_first(x + i, left), i) : load(row + i);
    sum.part[u % kParts] = add(sum.part[u % kParts], v);
    store(row + i, v);
  }
  normalize(row, s.width, sum, s.post, s.rms, s.epsilon, y, s.width);
}

static INLINE void zero_floats(float* to, size_t count) {
  if (count) __builtin_memset(to, 0, count * sizeof(float));
}
