// What one instruction set's library offers to ops.cpp: plain functions, so that torch's dispatcher headers are compiled once.
#pragma once

#include "../row.h"

namespace fastloss {

enum class Scalar : int { kFloat, kDouble, kBFloat16, kHalf };

struct Kernels {
  // Work is cut into items (a row, or a tile of neighbouring rows) that may run in any order on any thread.
  int64_t (*row_items)(const RowCall&);
  void (*row_forward)(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);
  void (*row_backward)(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);
};

}  // namespace fastloss
