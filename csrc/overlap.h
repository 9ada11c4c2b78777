// The overlap engine: sums that compare predicted probabilities with targets, for each sample and class, and the description of one
// call that every compiled backend takes. Losses are formulas over the sums.
#pragma once

#include "elementwise.h"
#include "row.h"

namespace fastloss {

// What is summed over the pixels of a sample and class, p the probability and t the target, over elements that count.
enum Statistic : int {
  kIntersection,     // p t
  kInput,            // p
  kInputSquare,      // p^2
  kTarget,           // t
  kTargetSquare,     // t^2
  kDifference,       // |p - t|
  kLoss,             // the functor's pointwise loss
  kCount,            // 1
  kStatistics,
};

// A functor of this engine makes probabilities of the input, and may add a pointwise loss.
// !kSoftmax: eval(x, t, params) gives p, dp/dx, and the loss with its derivatives.
template <class V>
struct Activated {
  V p, slope, loss, loss_input, loss_target;
};

struct Probability {
  static constexpr bool kSoftmax = false;
  template <class V, class P>
  FL_HD static Activated<V> eval(V x, V, const P*) {
    return {x, V(1), V(0), V(0), V(0)};
  }
};

struct SigmoidProbability {
  static constexpr bool kSoftmax = false;
  template <class V, class P>
  FL_HD static Activated<V> eval(V x, V, const P*) {
    const auto s = sigmoid(x);
    return {s.p, s.p * s.q, V(0), V(0), V(0)};
  }
};

// Pointwise: a loss of the element-wise engine on the logit.
template <class Loss>
struct OnSigmoid {
  static constexpr bool kSoftmax = false;
  template <class V, class P>
  FL_HD static Activated<V> eval(V x, V t, const P* params) {
    const auto s = sigmoid(x);
    const auto f = Loss::eval(x, t, V(1), params);
    return {s.p, s.p * s.q, f.value, f.input, f.target};
  }
};

// sigmoid(L (p - 1/2)), p = x or, kLogits, sigmoid(x): Han et al. 2024, equation 9.
template <bool kLogits>
struct Amplified {
  static constexpr bool kSoftmax = false;
  template <class V, class P>
  FL_HD static Activated<V> eval(V x, V, const P* params) {
    const V scale(params[0]);
    const auto s = sigmoid(x);
    const auto a = sigmoid(scale * ((kLogits ? s.p : x) - V(0.5)));
    const V slope = scale * a.p * a.q;
    return {a.p, kLogits ? slope * s.p * s.q : slope, V(0), V(0), V(0)};
  }
};

// kSoftmax: p is the softmax over the classes, and Term::eval(log p, params) of the row engine is a pointwise loss t f(log p).
struct NoTerm {
  template <class V, class P>
  FL_HD static Slope<V> eval(V, const P*) {
    return {V(0), V(0)};
  }
};

template <class RowLoss>
struct OnSoftmax {
  static constexpr bool kSoftmax = true;
  static constexpr bool kTerm = true;
  using Term = RowLoss;
};

template <>
struct OnSoftmax<NoTerm> {
  static constexpr bool kSoftmax = true;
  static constexpr bool kTerm = false;
  using Term = NoTerm;
};

#define FASTLOSS_OVERLAP(X) \
  X(none, Probability) \
  X(sigmoid, SigmoidProbability) \
  X(softmax, OnSoftmax<NoTerm>) \
  X(sigmoid_cross_entropy, OnSigmoid<BceWithLogits>) \
  X(softmax_cross_entropy, OnSoftmax<CrossEntropy>) \
  X(sigmoid_focal, OnSigmoid<SigmoidFocal>) \
  X(softmax_focal, OnSoftmax<SoftmaxFocal>) \
  X(amplified, Amplified<false>) \
  X(amplified_sigmoid, Amplified<true>)

// One call over samples x classes x pixels. All strides are in elements. `acc` is double for double inputs, else float.
//
// The target is either labels, an integer for each pixel, t_c = [label == c + first_label]; or has a number of the input's type for each
// element. With has_ignore, pixels of that label, or elements of that target, do not count: they add 0 to every sum and get a gradient
// of exactly 0, whatever the input holds there. (An element of a target of numbers still takes part in its pixel's softmax, through which
// a gradient reaches it.)
struct OverlapCall {
  int64_t samples, classes, pixels;
  const void* input;
  int64_t input_strides[3];
  const void* target;
  int64_t target_strides[3];  // labels: that of classes is 0
  int label_bytes;            // size of a label, 0 for a target of numbers
  int label_signed;
  int64_t first_label;
  int has_ignore;
  int64_t ignore_index;
  double params[kMaxParams];

  // Backward: d sum_k grad_k statistic_k, grad an acc array (samples, classes, kStatistics).
  const void* grad_statistics;
  void* grad_input;           // input's type, with grad_strides; or null
  void* grad_target;          // input's type, with grad_target_strides; or null
  int64_t grad_strides[3];
  int64_t grad_target_strides[3];
};

}  // namespace fastloss
