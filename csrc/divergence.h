// Losses of the divergence engine, and the description of one call that every compiled backend takes.
#pragma once

#include "math.h"

namespace fastloss {

// The part of one class in a loss between two rows, with its derivatives by the log-probabilities l and m of the two sides.
template <class V>
struct Divergent {
  V value, first, second;
};

// A loss of the divergence engine is sum_c f(l_c, m_c); p = exp(l) and q = exp(m) come along. One that is a mean under q of something
// linear in l and m (kMean) needs no second sweep over a row: h(v, u) of the logits less their maxima stands for h(l, m), and what the
// two normalisations add is known.
//
// sum q (kSelf log q - log p): the divergence of p from q, or their cross-entropy.
template <bool kSelf>
struct MeanUnderSecond {
  static constexpr bool kMean = true;
  template <class V>
  FL_HD static V h(V v, V u) {
    return kSelf ? u - v : V(0) - v;
  }
};
struct Kl : MeanUnderSecond<true> {};
struct Cross : MeanUnderSecond<false> {};

// beta KL(q || mix) + (1 - beta) KL(p || mix), mix = beta q + (1 - beta) p. Both parts are the derivatives, and log mix is taken less the
// larger of l and m, so that equal rows give exactly 0.
struct JensenShannon {
  static constexpr bool kMean = false;
  template <class V, class P>
  FL_HD static Divergent<V> eval(V l, V m, V p, V q, const P* params) {
    const V lowest(-1e4), beta(params[0]), rest = V(1) - beta;  // exp(-1e4) is 0, and differences stay numbers
    const V gap = at_least(lowest, m) - at_least(lowest, l);
    const V extra = log1p(select(less(V(0), gap), rest, beta) * expm1(V(0) - abs(gap)));
    const V first = V(0) - rest * p * (at_least(V(0), gap) + extra);
    const V second = V(0) - beta * q * (at_least(V(0), V(0) - gap) + extra);
    return {first + second, first, second};
  }
};

// |p - q| / 2; no derivative where p and q are equal.
struct TotalVariation {
  static constexpr bool kMean = false;
  template <class V, class P>
  FL_HD static Divergent<V> eval(V, V, V p, V q, const P*) {
    const V half(0.5), gap = p - q, side = sign(gap);
    return {half * abs(gap), half * side * p, V(0) - half * side * q};
  }
};

// What is kept of a row. Logits are scaled after the maximum was subtracted, so that no rounding of a large product shows.
enum DivergenceStat : int {
  kFirstMax,      // of logits before they are scaled
  kFirstLogSum,   // log of the sum of exp(scale * (logit - maximum))
  kSecondMax,
  kSecondLogSum,
  kFirstSlope,    // sum of df/dl; of a kMean it is -1, and not used
  kSecondSlope,   // sum of df/dm; of a kMean the mean of h(v, u) instead, which cancels less
  kDivergenceStats
};

template <class V>
struct DivergenceGradient {
  V first, second;
};

// The derivative of a row's loss by the scaled logits of a class, from these less the scaled maxima.
template <class F, class V, class P>
FL_HD DivergenceGradient<V> divergence_gradient(V v, V u, V log_sum1, V log_sum2, V slope1, V slope2, const P* params) {
  const V l = v - log_sum1, m = u - log_sum2, p = exp(l), q = exp(m);
  if constexpr (F::kMean) {
    // 0 where q is 0, unless the loss is no finite number
    return {p - q, select(equal(q, V(0)), q * slope2, q * (F::h(v, u) - slope2))};
  } else {
    const auto at = F::eval(l, m, p, q, params);
    return {at.first - p * slope1, at.second - q * slope2};
  }
}

#define FASTLOSS_DIVERGENCE(X) \
  X(kl, Kl) \
  X(cross, Cross) \
  X(jensen_shannon, JensenShannon) \
  X(total_variation, TotalVariation)

// One call. `acc` is double for double logits, else float. Rows have unit stride over classes; strides are in elements.
struct DivergenceCall {
  const void* first;
  const void* second;
  const void* centre;  // acc per class, subtracted from the second side, or null
  const void* weight;  // acc per row, or null; a row of weight 0 is not read
  int64_t rows, classes;
  int64_t first_stride, second_stride;

  double params[kMaxParams];
  double first_scale, second_scale, factor;
  int reduction;   // kNone, kSum, or kMean: divided by the sum of the weights
  int zero_empty;  // a mean over nothing is 0 instead of NaN

  // Forward writes, backward reads: acc, (kDivergenceStats, rows).
  void* stats;
  void* divisor;  // acc scalar: what a mean divides by

  void* row_loss;  // forward: acc per row, or null (cuda, unless Reduction::kNone)

  const void* grad_loss;  // backward: acc, one per row for Reduction::kNone, else one
  void* grad_first;       // backward: (rows, classes), contiguous, of the logits' type; null where not wanted
  void* grad_second;
};

}  // namespace fastloss
