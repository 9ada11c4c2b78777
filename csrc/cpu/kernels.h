// What one instruction set's library offers to the ops: plain functions, so that torch's dispatcher headers are compiled once.
#pragma once

#include "../elementwise.h"
#include "../margin.h"
#include "../overlap.h"
#include "../row.h"

namespace fastloss {

enum class Scalar : int { kFloat, kDouble, kBFloat16, kHalf };

namespace kernel {

// The row engine's work is cut into items (a row, or a tile of neighbouring rows) that may run in any order on any thread.
int64_t row_items(const RowCall&);
void row_forward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);
void row_backward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);

// The element-wise engine's is cut into ranges of elements. The forward gives the sums of losses and of weights of its range.
void elementwise_forward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end, double* sums);
void elementwise_backward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end);

// The overlap engine's is cut into items of neighbouring pixels of one sample. The forward gives (classes, kStatistics) sums an item in
// `partials`; false for a label that no class has.
int64_t overlap_items(const OverlapCall&);
bool overlap_forward(const OverlapCall&, Scalar, int functor, int64_t begin, int64_t end, double* partials);
void overlap_backward(const OverlapCall&, Scalar, int functor, int64_t begin, int64_t end);

// The margin engine's is cut into ranges of rows.
void margin_forward(const MarginCall&, Scalar, int64_t begin, int64_t end);
void margin_backward(const MarginCall&, Scalar, int64_t begin, int64_t end);

}  // namespace kernel

struct Kernels {
  decltype(&kernel::row_items) row_items;
  decltype(&kernel::row_forward) row_forward;
  decltype(&kernel::row_backward) row_backward;
  decltype(&kernel::elementwise_forward) elementwise_forward;
  decltype(&kernel::elementwise_backward) elementwise_backward;
  decltype(&kernel::overlap_items) overlap_items;
  decltype(&kernel::overlap_forward) overlap_forward;
  decltype(&kernel::overlap_backward) overlap_backward;
  decltype(&kernel::margin_forward) margin_forward;
  decltype(&kernel::margin_backward) margin_backward;
};

}  // namespace fastloss
