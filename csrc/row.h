// Losses of the row engine, and the description of one call that every compiled backend takes.
#pragma once

#include "math.h"

namespace fastloss {

// A loss of the row engine is a function of the log-probability l of a class, with its derivative:
//   loss = sum_c w_c q_c f(l_c),  q the (smoothed) target distribution.
// kNormalise: l is the log-softmax of the input; otherwise the input itself. Parameters come as P = float or double.
// kStablemax: it may be stablemax's logarithm instead, which costs every kernel that has the choice some code.
struct CrossEntropy {
  static constexpr bool kNormalise = true;
  static constexpr bool kStablemax = true;
  template <class V, class P>
  FL_HD static Slope<V> eval(V l, const P*) {
    return {V(0) - l, V(-1)};
  }
};

struct Nll {
  static constexpr bool kNormalise = false;
  static constexpr bool kStablemax = false;
  template <class V, class P>
  FL_HD static Slope<V> eval(V l, const P*) {
    return {V(0) - l, V(-1)};
  }
};

// -(1 - p)^gamma log p with p = exp(l): Lin et al. 2017, equation 4. (1 - p)^gamma is formed as exp(gamma log(1 - p)), and its
// derivative without (1 - p)^(gamma - 1), so both are finite for gamma < 1 and p = 1.
struct SoftmaxFocal {
  static constexpr bool kNormalise = true;
  static constexpr bool kStablemax = false;
  template <class V, class P>
  FL_HD static Slope<V> eval(V l, const P* params) {
    const V gamma(params[0]);
    const auto certain = less(V(-1e-30), l);  // p is 1
    const V log_prob = select(certain, V(-1), larger(V(-1e4), l));
    const V factor = params[0] == 0 ? V(1) : select(certain, V(0), exp(gamma * log1mexp(log_prob)));
    const V ratio = select(certain, V(-1), exp(log_prob) * log_prob / (V(0) - expm1(log_prob)));
    return {select(certain, V(0), V(0) - factor * l), factor * (gamma * ratio - V(1))};
  }
};

#ifndef FASTLOSS_ROW  // a build of few losses defines its own list
#define FASTLOSS_ROW(X) \
  X(cross_entropy, CrossEntropy) \
  X(nll, Nll) \
  X(softmax_focal, SoftmaxFocal)
#endif

// One call. `acc` is double for double inputs, else float. Rows are numbered r = o * inner + i, and class c of row r lies at
// offset o * outer_stride + c * class_stride + i: inner == 1 and class_stride == 1 is the contiguous class of kernels,
// anything else has unit stride over i. All counts and strides are in elements.
struct RowCall {
  const void* input;
  const void* target;   // int64 index per row; or probabilities of input's type
  const void* weight;   // acc per class, or null
  int64_t outer, classes, inner;
  int64_t outer_stride, class_stride;
  int64_t target_outer_stride, target_class_stride;  // probabilities only

  double params[kMaxParams];
  double label_smoothing, z_loss, softcap, logit_scale;  // softcap 0: none
  int64_t ignore_index;
  int reduction;
  int zero_empty;  // a mean over nothing is 0 instead of NaN
  int stablemax;   // z = symlog(logit_scale x), so that the softmax becomes stablemax; no softcap then. Of functors with kStablemax

  // Forward writes, backward reads. max, log_sum and slope are acc arrays of rows entries.
  void* max;      // maximum of the transformed logits z
  void* log_sum;  // log sum_c exp(z_c - max)
  void* slope;    // sum_c w_c q_c f'(l_c); 0 for an ignored row
  void* entropy;  // acc per row, or null: -sum_c p_c l_c
  void* divisor;  // acc scalar: what a mean divides by

  // Forward only.
  void* row_loss;  // acc per row, 0 for an ignored row
  void* accuracy;  // acc per row, or null: 1 if the target's logit is the largest

  // Backward only.
  const void* grad_loss;     // acc: one per row for Reduction::kNone, else one; null for no gradient
  const void* grad_lse;      // acc per row, or null
  const void* grad_entropy;  // acc per row, or null
  void* grad;                // input's type; laid out by grad_outer_stride, grad_class_stride, unit stride over inner
  int64_t grad_outer_stride, grad_class_stride;
};

}  // namespace fastloss
