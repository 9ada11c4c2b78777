// The vocabulary that functors are written in: the same names for float, double, SIMD vectors and device code.
//
// A functor is a template over V. On the CPU V is at::vec::Vectorized<float or double>, whose overloads come from
// cpu/vec.h; elsewhere V is float or double. Every function here takes and gives V; conditions are V-shaped masks that
// only select() reads.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define FL_HD __host__ __device__ __forceinline__
#else
#define FL_HD inline
#endif

#if defined(FASTLOSS_VECTORIZED)
#include "cpu/vec.h"
#endif

namespace fastloss {

FL_HD float exp(float x) { return ::expf(x); }
FL_HD double exp(double x) { return ::exp(x); }
FL_HD float log(float x) { return ::logf(x); }
FL_HD double log(double x) { return ::log(x); }
FL_HD float log1p(float x) { return ::log1pf(x); }
FL_HD double log1p(double x) { return ::log1p(x); }
FL_HD float expm1(float x) { return ::expm1f(x); }
FL_HD double expm1(double x) { return ::expm1(x); }
FL_HD float tanh(float x) { return ::tanhf(x); }
FL_HD double tanh(double x) { return ::tanh(x); }
FL_HD float atan(float x) { return ::atanf(x); }
FL_HD double atan(double x) { return ::atan(x); }

FL_HD float sqrt(float x) { return ::sqrtf(x); }
FL_HD double sqrt(double x) { return ::sqrt(x); }
FL_HD float abs(float x) { return ::fabsf(x); }
FL_HD double abs(double x) { return ::fabs(x); }

// The larger of the two; a when b is NaN.
FL_HD float larger(float a, float b) { return b > a ? b : a; }
FL_HD double larger(double a, double b) { return b > a ? b : a; }

FL_HD bool less(float a, float b) { return a < b; }
FL_HD bool less(double a, double b) { return a < b; }
FL_HD bool equal(float a, float b) { return a == b; }
FL_HD bool equal(double a, double b) { return a == b; }
FL_HD bool any(bool condition) { return condition; }
FL_HD float select(bool condition, float yes, float no) { return condition ? yes : no; }
FL_HD double select(bool condition, double yes, double no) { return condition ? yes : no; }

enum class Reduction : int { kNone = 0, kMean = 1, kSum = 2, kRowMean = 3, kWeightedMean = 4, kColumnMean = 5, kRowSums = 6 };

constexpr int kMaxParams = 4;

// A value and its derivative with respect to the functor's argument; the compiler drops the unused half.
template <class V>
struct Slope {
  V value, derivative;
};

// x, but `low` where x is smaller; NaN stays NaN.
template <class V>
FL_HD V at_least(V low, V x) {
  return select(less(x, low), low, x);
}

// About the smallest number whose reciprocal is finite: 1e-300 is 0 in float.
template <class V>
FL_HD V least_divisor() {
  return select(less(V(0), V(1e-300)), V(1e-300), V(1e-37));
}

// The smaller of the two; a when either is NaN.
template <class V>
FL_HD V smaller(V a, V b) {
  return select(less(b, a), b, a);
}

// -1, 0 or 1; 0 for NaN.
template <class V>
FL_HD V sign(V x) {
  return select(less(V(0), x), V(1), select(less(x, V(0)), V(-1), V(0)));
}

// sigmoid(x) and sigmoid(-x) from one exponential, exp(-|x|), that never overflows; small ones keep their relative accuracy.
template <class V>
struct Sigmoid {
  V p, q, e;
};

template <class V>
FL_HD Sigmoid<V> sigmoid(V x) {
  const V e = exp(V(0) - abs(x)), unit = V(1) / (V(1) + e);
  const auto negative = less(x, V(0));
  return {select(negative, e, V(1)) * unit, select(negative, V(1), e) * unit, e};
}

// The same with the logarithms: log(1 + exp(x)) = -log q and log(1 + exp(-x)) = -log p.
template <class V>
struct Logistic {
  V up, down, p, q;
};

template <class V>
FL_HD Logistic<V> logistic(V x) {
  const auto s = sigmoid(x);
  const V tail = log1p(s.e);
  return {at_least(V(0), x) + tail, at_least(V(0), V(0) - x) + tail, s.p, s.q};
}

// log(1 + |x|) with the sign of x (Hafner et al. 2023, equation 1). Its derivative is exp(-|symlog(x)|).
template <class V>
FL_HD V symlog(V x) {
  const V size = log1p(abs(x));
  return select(less(x, V(0)), V(0) - size, size);
}

// log(1 - exp(x)) for x <= 0 without cancellation: Maechler 2012, equation 7.
template <class V>
FL_HD V log1mexp(V x) {
  return select(less(V(-0.6931471805599453), x), log(V(0) - expm1(x)), log1p(V(0) - exp(x)));
}

}  // namespace fastloss
