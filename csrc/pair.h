// The pair engine: what its CPU and CUDA kernels share. fastloss/pair.py states the mathematics.
//
// A kernel works for the rows of one set, its own, over all rows of the other set. Statistics of the columns are those of the rows with the
// sets changed over, so a term is either of the kernel's own rows or of the other ones.
#pragma once

#include "math.h"

namespace fastloss {

// A functor's value and its derivatives with respect to the score, the row's and the column's parameter.
template <class V>
struct PairValue {
  V value, by_score, by_row, by_column;
};

// `c` are the constants, p and q the parameters of the row and the column (0 where there are none).
template <class V>
FL_HD V pair_affine(V s, V p, V q, const V* c) {
  return c[0] * s + c[1] + p + q;
}

struct PairLinear {
  static constexpr bool kHinge = false;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    return {pair_affine(s, p, q, c), c[0], V(1), V(1)};
  }
};

struct PairRelu {
  static constexpr bool kHinge = true;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    const V x = pair_affine(s, p, q, c), slope = select(less(V(0), x), V(1), V(0));
    return {at_least(V(0), x), c[0] * slope, slope, slope};
  }
};

struct PairSquare {
  static constexpr bool kHinge = true;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    const V x = at_least(V(0), pair_affine(s, p, q, c)), slope = x + x;
    return {x * x, c[0] * slope, slope, slope};
  }
};

struct PairSoftplus {
  static constexpr bool kHinge = false;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    const auto l = logistic(pair_affine(s, p, q, c));
    return {l.up, c[0] * l.p, l.p, l.p};
  }
};

// The weight max(0, c0 s + c1) has no gradient of its own.
struct PairCircle {
  static constexpr bool kHinge = false;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V, V, const V* c) {
    const V slope = c[2] * at_least(V(0), c[0] * s + c[1]);
    return {slope * (s - c[3]), slope, V(0), V(0)};
  }
};

// p and q are log-sum-exps of two sets; that of both together is 0 where both are empty.
struct PairLifted {
  static constexpr bool kHinge = true;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    const V top = larger(p, q), bottom = smaller(p, q);
    const auto empty = equal(top, V(-INFINITY));
    const V gap = select(empty, V(0), bottom - top);  // of two that are empty it would be NaN
    const V e = exp(gap), unit = V(1) / (V(1) + e);
    const V both = select(empty, V(0), top + log1p(e));
    const V x = at_least(V(0), both + c[0] * s + c[1]);
    const V major = select(empty, V(0), x * unit), minor = select(empty, V(0), x * e * unit);
    const auto first = less(p, q);
    return {V(0.5) * x * x, c[0] * x, select(first, minor, major), select(first, major, minor)};
  }
};

// softplus(p + q - c0 cos(acos(s) - m)), c2 = cos(m), c3 = sin(m); outside (-1, 1) the angle is held.
struct PairTuplet {
  static constexpr bool kHinge = false;
  template <class V>
  FL_HD static PairValue<V> eval(V s, V p, V q, const V* c) {
    const auto inside = less(abs(s), V(1));
    const V safe = select(inside, s, V(0)), sine = sqrt((V(1) - safe) * (V(1) + safe));
    const V turned = select(inside, c[2] * safe + c[3] * sine, sign(s) * c[2]);
    const auto l = logistic(p + q - c[0] * turned);
    const V slope = select(inside, c[2] - c[3] * safe / sine, V(0));
    return {l.up, V(0) - l.p * c[0] * slope, l.p, l.p};
  }
};

// The order is that of FUNCTORS in fastloss/pair.py.
#define FASTLOSS_PAIR(X) \
  X(linear, PairLinear) \
  X(relu, PairRelu) \
  X(square, PairSquare) \
  X(softplus, PairSoftplus) \
  X(circle, PairCircle) \
  X(lifted, PairLifted) \
  X(tuplet, PairTuplet)

enum class PairReduce : int { kSum, kLogSumExp, kMax };
enum class PairMask : int { kAll, kPositive, kNegative };
enum class PairTransform : int { kNone, kClamp, kSqrt, kSoftcap };

constexpr int kPairConstants = 4;
constexpr int kMaxPairTerms = 4;  // of a call; of a set compared with itself each has two roles in the backward

template <class V>
FL_HD V pair_transform(PairTransform transform, V x, V cap) {
  switch (transform) {
    case PairTransform::kClamp: return at_least(V(0), x);
    case PairTransform::kSqrt: return sqrt(at_least(V(0), x));
    case PairTransform::kSoftcap: return cap * tanh(x / cap);
    default: return x;
  }
}

// The transform's derivative, from its value.
template <class V>
FL_HD V pair_transform_slope(PairTransform transform, V s, V cap) {
  switch (transform) {
    case PairTransform::kClamp: return select(less(V(0), s), V(1), V(0));
    case PairTransform::kSqrt: return select(less(V(0), s), V(0.5) / select(less(V(0), s), s, V(1)), V(0));
    case PairTransform::kSoftcap: return V(1) - (s / cap) * (s / cap);
    default: return V(1);
  }
}

// `acc` is double for double and else float; every pointer is to acc, and null where there is nothing.
struct PairTerm {
  int functor;
  PairReduce reduce;
  PairMask mask;
  bool own;                // a statistic of the kernel's own rows, else of the other ones
  bool own_is_row;         // whether the own rows are what the functor's p is of
  double constants[kPairConstants];
  const void *own_param, *other_param;
  const void *value, *grad;  // backward: the statistic and its upstream gradient, of the side that the term is of
};

struct PairCall {
  int64_t own, other, features;
  const void *own_bias, *other_bias;
  const void *own_label, *other_label;
  const uint8_t* codes;
  int64_t codes_own_stride, codes_other_stride;
  bool skips;
  int64_t skip;  // leave out pairs with other - own == skip
  double scale;
  PairTransform transform;
  double cap;
  int terms;
  PairTerm term[2 * kMaxPairTerms];
};

}  // namespace fastloss
