// The sort engine: what its CPU and CUDA kernels share. fastloss/sort.py states the mathematics.
#pragma once

#include "math.h"

namespace fastloss {

// Errors from a score and its label (1 foreground, 0 background), with the derivative with respect to the score.
struct HingeError {
  static constexpr bool kNormalise = false;
  template <class V>
  FL_HD static Slope<V> eval(V x, V foreground) {
    const V against = V(1) - foreground - foreground;
    return {V(1) + against * x, against};
  }
};

struct Distance {
  template <class V>
  FL_HD static Slope<V> eval(V p, V foreground) {
    const V above = p - foreground;
    return {abs(above), sign(above)};
  }
};

struct SoftmaxDistance : Distance {
  static constexpr bool kNormalise = true;
};

struct ProbabilityDistance : Distance {
  static constexpr bool kNormalise = false;
};

#define FASTLOSS_SORT(X) \
  X(hinge, HingeError) \
  X(softmax, SoftmaxDistance) \
  X(probability, ProbabilityDistance)

// The weight of a rank from labels alone: `seen` foreground and `others` background elements have errors as large, itself included,
// and `total` elements of the row are foreground. The increment of the Jaccard loss, without the cancellation of a difference.
template <class A>
FL_HD A jaccard_weight(bool foreground, int64_t total, int64_t seen, int64_t others) {
  const A joint = static_cast<A>(total + others);
  if (foreground) return A(1) / joint;
  if (total == 0) return static_cast<A>(others == 1);
  return static_cast<A>(total - seen) / (joint * (joint - A(1)));
}

// Labels of one of two types; `ignores` tells whether one of them takes no part.
struct Labels {
  const void* data;
  bool wide;  // int64, else uint8
  bool ignores;
  int64_t ignored;

  FL_HD int64_t at(int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<int64_t>(static_cast<const uint8_t*>(data)[i]);
  }
  FL_HD bool used(int64_t label) const { return !ignores || label != ignored; }
};

// `acc` is double for double and else float. A group is an image or all of them; `size` elements of a group make a row for each of
// `rows` classes. An element is numbered over all images.
struct SortCall {
  const void* input;  // (images, channels, inner) with unit stride over inner
  int64_t images, channels, inner;
  int64_t image_stride, channel_stride;
  Labels labels;                  // of images * inner elements
  int64_t groups, rows, size;
  const int64_t* class_of_row;    // null: row r is of class r, or of `lone` where there is one channel
  const int64_t* row_of_channel;  // -1: none; null: row c is of channel c
  int64_t lone;
  void* stats;                    // acc, (2, elements): maximum and inverse of the sum of a softmax
  void* slopes;                   // acc, (groups, rows, size): the weight of each element, or null
  const void* shares;             // acc, (groups, rows): share of each row in the loss
  const void* grad_loss;          // acc
  void* grad;                     // the input's type, contiguous

  FL_HD int64_t class_of(int64_t row) const { return class_of_row ? class_of_row[row] : channels == 1 ? lone : row; }
  FL_HD int64_t channel_of(int64_t row) const { return channels == 1 ? 0 : class_of(row); }
  FL_HD int64_t row_of(int64_t channel) const { return row_of_channel ? row_of_channel[channel] : channel; }
};

}  // namespace fastloss
