// What the engines' sources offer to the Python bindings: plain functions, so that nvcc never sees pybind11.
#pragma once

#include "../box.h"
#include "../elementwise.h"
#include "../overlap.h"
#include "../row.h"

namespace fastloss {

enum class Scalar : int { kFloat, kDouble, kBFloat16, kHalf };

struct RowLaunch {
  const char* functor;
  Scalar scalar;
  bool soft;         // targets are probabilities
  void* loss;        // Forward with a reduction: the scalar result, of type loss_scalar. Reduction::kNone writes call.row_loss.
  Scalar loss_scalar;
  void* partial;     // forward: acc, 2 * max_blocks() entries of scratch
  void* stream;
};

struct ElementwiseLaunch {
  const char* functor;
  Scalar scalar;
  void* loss;     // Forward with a reduction: the scalar result, of the operands' type. Reduction::kNone writes call.loss.
  void* partial;  // Forward with a reduction: acc, 2 * max_blocks() entries of scratch.
  void* stream;
};

struct OverlapLaunch {
  const char* functor;
  Scalar scalar;
  void* statistics;  // forward: acc (samples, classes, kStatistics)
  void* partial;     // forward: acc, overlap_scratch() entries; null where that is 0
  void* stream;
};

struct BoxLaunch {
  const char* functor;
  Scalar scalar;
  void* partial;  // forward with a reduction: acc, 2 * max_blocks() entries of scratch
  void* stream;
};

int64_t max_blocks();
// How many numbers of scratch a forward needs.
int64_t overlap_scratch(Scalar scalar, int64_t samples, int64_t classes, int64_t pixels);


// All throw std::runtime_error with the driver's words when a launch fails.
void row_forward(const RowCall& call, const RowLaunch& launch);
void row_backward(const RowCall& call, const RowLaunch& launch);
void elementwise_forward(const ElementwiseCall& call, const ElementwiseLaunch& launch);
void elementwise_backward(const ElementwiseCall& call, const ElementwiseLaunch& launch);
// No size of these two is 0.
void overlap_forward(const OverlapCall& call, const OverlapLaunch& launch);
void overlap_backward(const OverlapCall& call, const OverlapLaunch& launch);
void box_forward(const BoxCall& call, const BoxLaunch& launch);
void box_backward(const BoxCall& call, const BoxLaunch& launch);
void box_pairs_forward(const BoxPairsCall& call, const BoxLaunch& launch);
void box_pairs_backward(const BoxPairsCall& call, const BoxLaunch& launch);

}  // namespace fastloss
