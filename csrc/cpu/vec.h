// The functor vocabulary for SIMD vectors: at::vec::Vectorized<float or double> of the instruction set being compiled.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

namespace fastloss {

using at::vec::Vectorized;

template <class T>
inline Vectorized<T> log(Vectorized<T> x) { return x.log(); }
template <class T>
inline Vectorized<T> log1p(Vectorized<T> x) { return x.log1p(); }
template <class T>
inline Vectorized<T> expm1(Vectorized<T> x) { return x.expm1(); }
template <class T>
inline Vectorized<T> tanh(Vectorized<T> x) { return x.tanh(); }
template <class T>
inline Vectorized<T> atan(Vectorized<T> x) { return x.atan(); }

template <class T>
inline Vectorized<T> sqrt(Vectorized<T> x) { return x.sqrt(); }
template <class T>
inline Vectorized<T> abs(Vectorized<T> x) { return x.abs(); }

// One instruction: the operand order makes it give b when either is NaN.
template <class T>
inline Vectorized<T> larger(Vectorized<T> a, Vectorized<T> b) { return at::vec::clamp_min(b, a); }

template <class T>
inline Vectorized<T> less(Vectorized<T> a, Vectorized<T> b) { return a < b; }
template <class T>
inline Vectorized<T> equal(Vectorized<T> a, Vectorized<T> b) { return a == b; }
// Whether a lane of a mask is set.
template <class T>
inline bool any(Vectorized<T> mask) { return mask.zero_mask() != (1 << Vectorized<T>::size()) - 1; }
template <class T>
inline Vectorized<T> select(Vectorized<T> mask, Vectorized<T> yes, Vectorized<T> no) {
  return Vectorized<T>::blendv(no, yes, mask);
}

inline Vectorized<double> exp(Vectorized<double> x) { return x.exp(); }

// exp to about one unit in the last place, several times as fast as the vector library's. NaN stays NaN, results below the
// smallest normal number are 0. Cody-Waite reduction to |r| <= ln(2)/2, then 1 + r + r^2 q(r) with a minimax q of degree 4
// (relative error 3.3e-9 before rounding).
[[gnu::always_inline]] inline Vectorized<float> exp(Vectorized<float> x) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  using V = Vectorized<float>;
  const V smallest(-87.3365f);
#if defined(CPU_CAPABILITY_AVX512)
  const V bounded = _mm512_min_ps(V(89.0f), x);
#else
  const V bounded = at::vec::clamp(x, smallest, V(89.0f));
#endif
  const V n = (bounded * V(1.44269504088896341f)).round();
  V r = at::vec::fmadd(n, V(-0.693359375f), bounded);
  r = at::vec::fmadd(n, V(2.12194440e-4f), r);
  V p = at::vec::fmadd(V(0.0013813144760206342f), r, V(0.008369418792426586f));
  p = at::vec::fmadd(p, r, V(0.04166845604777336f));
  p = at::vec::fmadd(p, r, V(0.16666515171527863f));
  p = at::vec::fmadd(p, r, V(0.4999999403953552f));
  p = at::vec::fmadd(p, r, V(1.0f));
  p = at::vec::fmadd(p, r, V(1.0f));
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, smallest, _CMP_NLT_UQ), p, n);
#else
  // Two factors, since 2^128 alone is no float though 2^128 * p may be.
  const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1), rest = _mm256_sub_epi32(power, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const V first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const V second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return V::blendv(p * first * second, V(0.0f), x < smallest);
#endif
#else
  return x.exp();
#endif
}

}  // namespace fastloss
