// What row.cu and elementwise.cu offer to the Python bindings: plain functions, so that nvcc never sees pybind11.
#pragma once

#include "../elementwise.h"
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
  void* loss;     // Forward with a reduction: the result, of the operands' type. Reduction::kNone writes call.loss.
  void* partial;  // Forward with a reduction: acc, 2 * max_blocks() entries of scratch.
  void* stream;
  int64_t count;  // Forward with a reduction: what a mean that is not weighted divides by.
};

int64_t max_blocks();

// All throw std::runtime_error with the driver's words when a launch fails.
void row_forward(const RowCall& call, const RowLaunch& launch);
void row_backward(const RowCall& call, const RowLaunch& launch);
void elementwise_forward(const ElementwiseCall& call, const ElementwiseLaunch& launch);
void elementwise_backward(const ElementwiseCall& call, const ElementwiseLaunch& launch);

}  // namespace fastloss
