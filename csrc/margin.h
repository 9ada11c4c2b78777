// Losses of the margins between the scores of a row's labels and of its other classes, and the description of one call.
#pragma once

#include "math.h"

namespace fastloss {

// A row's loss is w_y / C sum_y sum_j max(0, margin - x_y + x_j)^p over its labels y and the classes j that are none of them.
struct MarginCall {
  const void* input;  // rows x classes
  int64_t rows, classes, row_stride, class_stride;
  const int64_t* target;  // rows x labels, of which those before the first negative one count
  int64_t labels;
  const void* weight;  // acc, one a class, of the first label; or null
  bool squared;        // p = 2
  double margin;

  void* row_loss;         // forward: acc, one a row
  const void* grad_loss;  // backward: acc, one a row, or (not per_row) one
  bool per_row;
  double divisor;  // backward: of the one
  void* grad;      // rows x classes, contiguous
};

}  // namespace fastloss
