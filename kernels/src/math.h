// Functions of vectors. Included inside an anonymous namespace of a variant's file, after its simd_*.h.

// 2^t for t <= 0, relative error 8e-8.
INLINE vf exp2_negative(vf t) {
  constexpr float c[6] = {9.999999253e-01f, 6.931530686e-01f, 2.401536385e-01f, 5.582628066e-02f, 8.989364495e-03f, 1.877573008e-03f};
  const vf low = kAnyExponent ? t : vmax(set1(-126.f), t);  // below that, the result is 0 for every purpose here
  const vf f = fraction_above_floor(low);
  vf p = set1(c[5]);
#pragma GCC unroll 5
  for (int i = 4; i >= 0; i--) p = fma(p, f, set1(c[i]));
  return times_power_of_floor(p, low);
}

#ifdef __AVX512F__
#include "gelu_avx512.h"
#else
// Both forms of GELU are max(x, 0) - p(|x|) with p(t) = t * (1 - cdf(t)): one polynomial on [0, 4.5] in t - 2.25, of degree 10.
// Errors: 1.44e-5 (erf), 1.47e-5 (tanh), that of p(4.5) for larger |x| included.
INLINE vf gelu_with(const float* c, vf x) {
  const vf s = vmin(set1(2.25f), sub(vabs(x), set1(2.25f)));
  vf p = set1(c[10]);
#pragma GCC unroll 10
  for (int i = 9; i >= 0; i--) p = fma(p, s, set1(c[i]));
  return sub(vmax(set1(0.f), x), p);
}
constexpr float kErf[11] = {2.749713324e-02f,  -5.912866816e-02f, 4.870960861e-02f,  -1.292429678e-02f,
                            -7.919508033e-03f, 7.539775223e-03f,  -1.579289907e-03f, -6.039651344e-04f,
                            2.685280924e-04f,  1.473891916e-05f,  -1.280704146e-05f};
constexpr float kTanh[11] = {2.719680779e-02f,  -5.984396115e-02f, 4.924837500e-02f,  -1.228749007e-02f,
                             -8.309691213e-03f, 7.317909971e-03f,  -1.447167364e-03f, -5.687543307e-04f,
                             2.475151268e-04f,  1.261777379e-05f,  -1.153571520e-05f};
#endif

// x / (1 + exp(-x)), by way of exp(-|x|), which cannot overflow.
INLINE vf silu(vf x) {
  const vf e = exp2_negative(mul(vabs(x), set1(-1.44269504f)));
  // x >= 0: x / (1 + e); else x * e / (1 + e).
  return divide(fma(vmin(set1(0.f), x), e, vmax(set1(0.f), x)), add(set1(1.f), e));
}

template <Activation A>
INLINE vf activate(vf x) {
  if (A == Activation::kGelu) return gelu_with(kErf, x);
  if (A == Activation::kGeluTanh) return gelu_with(kTanh, x);
  if (A == Activation::kRelu) return vmax(set1(0.f), x);
  return silu(x);
}
