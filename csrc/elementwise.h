// Losses of the element-wise engine, and the description of one call that every compiled backend takes.
#pragma once

#include "math.h"

namespace fastloss {

// A loss and its derivatives with respect to the input x, the target t and the third operand z; what is unused costs nothing.
template <class V>
struct Partials {
  V value, input, target, third;
};

// A loss of the element-wise engine is a function f(x, t, z) of single numbers. z is 1 where a call has no third operand.
// Parameters come as P = float or double.

// f(e), e = x - t, and its derivative
template <class V>
FL_HD Partials<V> of_difference(V value, V slope) {
  return {value, slope, V(0) - slope, V(0)};
}

struct Mse {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V e = x - t;
    return of_difference(e * e, e + e);
  }
};

struct L1 {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V e = x - t;
    return of_difference(abs(e), sign(e));
  }
};

// e^2 / (2 beta) inside beta, |e| - beta / 2 outside; beta = 0 is L1.
struct SmoothL1 {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, a = abs(e), beta(p[0]);
    const auto quadratic = less(a, beta);
    return of_difference(select(quadratic, V(0.5) * e * e / beta, a - V(0.5) * beta), select(quadratic, e / beta, sign(e)));
  }
};

// Huber 1964: e^2 / 2 inside delta, delta (|e| - delta / 2) outside.
struct Huber {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, a = abs(e), delta(p[0]);
    const auto quadratic = less(a, delta);
    return of_difference(select(quadratic, V(0.5) * e * e, delta * (a - V(0.5) * delta)), select(quadratic, e, delta * sign(e)));
  }
};

// log cosh e; near 0, where |e| - log 2 + log(1 + exp(-2|e|)) cancels, from cosh a - 1 = (exp(-a) - 1)^2 / (2 exp(-a)).
struct LogCosh {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V e = x - t, a = abs(e);
    const auto near = less(a, V(1));
    const V m = expm1(V(0) - select(near, a, a + a));
    const V value = log1p(select(near, V(0.5) * m * m / (V(1) + m), V(1) + m));
    return of_difference(select(near, value, (a - V(0.6931471805599453)) + value), tanh(e));
  }
};

// max(tau u, (tau - 1) u), u = t - x: Koenker and Bassett 1978. At u = 0 the two slopes count half each. z is a level for each element.
struct Quantile {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V z, const P* p) {
    const V u = t - x, tau = V(p[0]) * z;
    const V slope = V(0.5) * sign(u) + (tau - V(0.5));
    return {u * slope, V(0) - slope, slope, V(0)};
  }
};

// scale |x - t| / max(|t|, eps)
struct Mape {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, eps(p[0]), scale(p[1]), size = abs(t);
    const auto small = less(size, eps);
    const V unit = scale / select(small, eps, size), value = abs(e) * unit, slope = sign(e) * unit;
    return {value, slope, V(0) - slope - select(small, V(0), value * sign(t) / size), V(0)};
  }
};

// scale |x - t| / max((|x| + |t|) / 2, eps)
struct Smape {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, eps(p[0]), scale(p[1]), size = V(0.5) * (abs(x) + abs(t));
    const auto small = less(size, eps);
    const V unit = scale / select(small, eps, size), value = abs(e) * unit, slope = sign(e) * unit;
    const V shrink = select(small, V(0), V(0.5) * value / size);
    return {value, slope - shrink * sign(x), V(0) - slope - shrink * sign(t), V(0)};
  }
};

struct Msle {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V e = log1p(x) - log1p(t);
    return {e * e, (e + e) / (V(1) + x), V(0) - (e + e) / (V(1) + t), V(0)};
  }
};

// sqrt(e^2 + eps^2): Charbonnier et al. 1994.
struct Charbonnier {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, value = sqrt(e * e + V(p[0]) * V(p[0]));
    return of_difference(value, e / value);
  }
};

// log(1 + (e / c)^2 / 2): Barron 2019 with shape 0. Its square may overflow, its derivative may not.
struct Cauchy {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V scale(p[0]), u = (x - t) / scale, size = abs(u);
    const V far = log(size) * V(2) - V(0.69314718055994530942), near = log1p(u * u * V(0.5));
    return of_difference(select(less(V(1e9), size), far, near), V(1) / (scale * (V(1) / u + u * V(0.5))));
  }
};

// w log(1 + |e| / eps) inside w, |e| - c outside, continuous at w: Feng et al. 2018, equation 5.
struct Wing {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V e = x - t, a = abs(e), width(p[0]), eps(p[1]);
    const auto curved = less(a, width);
    const V shift = width - width * log1p(width / eps);
    return of_difference(select(curved, width * log1p(a / eps), a - shift), sign(e) * select(curved, width / (eps + a), V(1)));
  }
};

// log_input, full, eps. full: Stirling's approximation of log t! where t > 1.
struct PoissonNll {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    V value, input, target;
    if (p[0] != 0) {
      const V rate = exp(x);
      value = rate - t * x;
      input = rate - t;
      target = V(0) - x;
    } else {
      const V shifted = x + V(p[2]), level = log(shifted);
      value = x - t * level;
      input = V(1) - t / shifted;
      target = V(0) - level;
    }
    if (p[1] != 0) {
      const auto many = less(V(1), t);
      const V count = select(many, t, V(1)), level = log(count);
      value = value + select(many, count * level - count + V(0.5) * (level + V(1.8378770664093453)), V(0));
      target = target + select(many, level + V(0.5) / count, V(0));
    }
    return {value, input, target, V(0)};
  }
};

// full, eps; z is the variance, whose gradient flows where it is clamped too.
struct GaussianNll {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V z, const P* p) {
    const V e = x - t, variance = at_least(V(p[1]), z), unit = e / variance;
    const V constant(p[0] != 0 ? 0.9189385332046727 : 0.0);
    return {V(0.5) * (log(variance) + e * unit) + constant, unit, V(0) - unit, V(0.5) * (V(1) / variance - unit * unit)};
  }
};

// t (log t - x), 0 at t = 0; log_target: exp(t) (t - x).
struct KlDiv {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    if (p[0] != 0) {
      const V weight = exp(t), value = weight * (t - x);
      return {value, V(0) - weight, value + weight, V(0)};
    }
    const auto zero = equal(t, V(0));
    const V level = log(select(zero, V(1), t));
    return {t * level - t * x, V(0) - t, level - x + select(zero, V(0), V(1)), V(0)};
  }
};

// x where t is not -1, and max(0, margin - x) where it is not 1: both for any other t.
struct HingeEmbedding {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V gap = V(p[0]) - x;
    const V near = select(equal(t, V(-1)), V(0), V(1)), far = select(equal(t, V(1)), V(0), V(1));
    const auto satisfied = less(gap, V(0));
    return {near * x + far * select(satisfied, V(0), gap), near - select(satisfied, V(0), far), V(0), V(0)};
  }
};

// log(1 + exp(-t x))
struct SoftMargin {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const auto l = logistic(V(0) - t * x);
    return {l.up, V(0) - t * l.p, V(0) - x * l.p, V(0)};
  }
};

// max(0, 1 - t x)
struct Hinge {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V gap = V(1) - t * x;
    const auto satisfied = less(gap, V(0));
    return {select(satisfied, V(0), gap), select(satisfied, V(0), V(0) - t), select(satisfied, V(0), V(0) - x), V(0)};
  }
};

struct SquaredHinge {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V kept = at_least(V(0), V(1) - t * x);
    return {kept * kept, V(-2) * kept * t, V(-2) * kept * x, V(0)};
  }
};

// max(0, margin - z (x - t)), z = 1 where x should rank higher, -1 where t should
struct MarginRanking {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V z, const P* p) {
    const V e = x - t, gap = V(p[0]) - z * e;
    const auto satisfied = less(gap, V(0));
    const V slope = select(satisfied, V(0), z);
    return {select(satisfied, V(0), gap), V(0) - slope, slope, select(satisfied, V(0), V(0) - e)};
  }
};

// x a probability; logarithms end at -100.
struct Bce {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P*) {
    const V lowest(-100), yes = log(x), no = log1p(V(0) - x);
    return {(t - V(1)) * at_least(lowest, no) - t * at_least(lowest, yes), (x - t) / at_least(V(1e-12f), (V(1) - x) * x), no - yes, V(0)};
  }
};

// z is pos_weight.
struct BceWithLogits {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V z, const P*) {
    const auto l = logistic(x);
    const V raised = V(1) + (z - V(1)) * t;
    return {(V(1) - t) * x + raised * l.down, (V(1) - t) - raised * l.q, (z - V(1)) * l.down - x, t * l.down};
  }
};

// alpha_t (1 - p_t)^gamma BCE(x, t): Lin et al. 2017, equation 5. alpha, gamma, threshold, constant. alpha < 0: no alpha; z is an alpha for
// each element. (1 - p_t)^gamma is exp(gamma log(1 - p_t)) and the derivative has no (1 - p_t)^(gamma - 1) for t in {0, 1}, so both are
// finite for gamma < 1 and any x. threshold > 0: ((1 - p_t) / threshold)^gamma, and 1 where p_t < threshold. constant: alpha for any t.
struct SigmoidFocal {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V z, const P* params) {
    const bool balanced = params[3] == 0, weighted = params[0] >= 0;
    const V alpha = V(params[0]) * z, gamma(params[1]);
    const auto l = logistic(x);
    const V ce = (V(1) - t) * l.up + t * l.down;
    const V weight = !weighted ? V(1) : !balanced ? alpha : alpha * t + (V(1) - alpha) * (V(1) - t);
    const auto positive = equal(t, V(1)), negative = equal(t, V(0));
    const V miss = l.q * t + l.p * (V(1) - t);  // 1 - p_t
    // d miss / dx = (1 - 2t) p q; over miss it is -p for t = 1 and q for t = 0. The second ratio is left out for labels, for which
    // q may have underflowed.
    V log_miss = select(positive, V(0) - l.up, V(0) - l.down);
    V ratio = select(positive, V(0) - l.p, l.q), target_ratio(0);
    const auto soft = select(positive, V(0), select(negative, V(0), V(1)));
    if (params[1] != 0 && any(less(V(0), soft))) {  // gamma = 0 has no use for ratios, of which a tiny miss would make infinities
      const auto between = less(V(0), soft);
      log_miss = select(between, log(miss), log_miss);
      const V divisor = at_least(least_divisor<V>(), miss);
      ratio = select(between, (V(1) - t - t) * l.p * l.q / divisor, ratio);
      target_ratio = select(between, (l.q - l.p) / divisor, V(0));
    }
    V factor = params[1] == 0 ? V(1) : params[1] == 2 ? miss * miss : exp(gamma * log_miss);
    if (params[2] > 0) {
      const auto hard = less(V(1) - V(params[2]), miss);
      factor = select(hard, V(1), factor * exp(V(0) - gamma * log(V(params[2]))));
      ratio = select(hard, V(0), ratio);
      target_ratio = select(hard, V(0), target_ratio);
    }
    const V dce = (V(1) - t) * l.p - t * l.q;
    const V dweight = weighted && balanced ? alpha + alpha - V(1) : V(0);
    return {weight * factor * ce, weight * factor * (dce + gamma * ratio * ce),
            factor * (dweight * ce + weight * (l.down - l.up) + weight * gamma * target_ratio * ce),
            weighted ? V(params[0]) * factor * ce * (balanced ? t + t - V(1) : V(1)) : V(0)};
  }
};

// (p - t)^2, p = x or, from_logits, sigmoid(x): Brier 1950.
struct Brier {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* params) {
    const bool logits = params[0] != 0;
    const auto s = sigmoid(x);
    const V p = logits ? s.p : x, e = p - t;
    return {e * e, logits ? (e + e) * p * s.q : e + e, V(0) - (e + e), V(0)};
  }
};

// (1 - 2 t) x: the critic's score, up for generated samples (t = 0) and down for real ones (t = 1). Not for_critic: -x.
struct Wasserstein {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V critic(p[0]), side = V(2) * critic * (V(1) - t) - V(1);
    return {side * x, side, V(-2) * critic * x, V(0)};
  }
};

// (x^2 + exp(t) - 1 - t) / 2, the divergence of N(x, exp(t)) from N(0, 1): Kingma and Welling 2014, appendix B. At least p[0] where that is
// positive.
struct GaussianKl {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V growth = expm1(t), value = V(0.5) * (x * x + (growth - t));
    const V least(p[0] > 0 ? p[0] : P(-1));
    const auto free = less(value, least);
    return {select(free, least, value), select(free, V(0), x), select(free, V(0), V(0.5) * growth), V(0)};
  }
};

// t max(0, m+ - x)^2 + downweight (1 - t) max(0, x - m-)^2: Sabour et al. 2017, equation 4. m+, m-, downweight.
struct CapsuleMargin {
  template <class V, class P>
  FL_HD static Partials<V> eval(V x, V t, V, const P* p) {
    const V missing = at_least(V(0), V(p[0]) - x), extra = at_least(V(0), x - V(p[1])), down(p[2]), absent = down * (V(1) - t);
    const V present = missing * missing, spurious = extra * extra;
    return {t * present + absent * spurious, V(2) * (absent * extra - t * missing), present - down * spurious, V(0)};
  }
};

#ifndef FASTLOSS_ELEMENTWISE  // a build of few losses defines its own list
#define FASTLOSS_ELEMENTWISE(X) \
  X(mse, Mse) \
  X(l1, L1) \
  X(smooth_l1, SmoothL1) \
  X(huber, Huber) \
  X(log_cosh, LogCosh) \
  X(quantile, Quantile) \
  X(mape, Mape) \
  X(smape, Smape) \
  X(msle, Msle) \
  X(charbonnier, Charbonnier) \
  X(cauchy, Cauchy) \
  X(wing, Wing) \
  X(poisson_nll, PoissonNll) \
  X(gaussian_nll, GaussianNll) \
  X(kl_div, KlDiv) \
  X(hinge_embedding, HingeEmbedding) \
  X(soft_margin, SoftMargin) \
  X(hinge, Hinge) \
  X(squared_hinge, SquaredHinge) \
  X(margin_ranking, MarginRanking) \
  X(binary_cross_entropy, Bce) \
  X(binary_cross_entropy_with_logits, BceWithLogits) \
  X(sigmoid_focal, SigmoidFocal) \
  X(brier, Brier) \
  X(wasserstein, Wasserstein) \
  X(gaussian_kl, GaussianKl) \
  X(capsule_margin, CapsuleMargin)
#endif

constexpr int kMaxDims = 3;

// A tensor of the call's shape (or of a shape that was expanded to it: strides of 0), in elements. No data: it is absent.
struct Operand {
  const void* data;
  int64_t strides[kMaxDims];
};

// One call over sizes[0] x sizes[1] x sizes[2] elements, the last dimension fastest. `acc` is double for double inputs, else float;
// every operand has the input's type.
struct ElementwiseCall {
  int64_t sizes[kMaxDims];
  Operand input, target, third, weight;
  double params[kMaxParams];
  int reduction;
  void* divisor;           // acc scalar: what a mean divides by; forward writes, backward reads

  Operand loss;            // forward, Reduction::kNone: a loss for each element

  Operand grad_loss;       // backward, Reduction::kNone: an upstream gradient for each element
  const void* grad_scalar; // backward, otherwise: acc scalar
  Operand grad_input, grad_target, grad_third;  // without data where not wanted
};

}  // namespace fastloss
