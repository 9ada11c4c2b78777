// What row.cu offers to the Python bindings: plain functions, so that nvcc never sees pybind11.
#pragma once

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

int64_t max_blocks();

// Both throw std::runtime_error with the driver's words when a launch fails.
void row_forward(const RowCall& call, const RowLaunch& launch);
void row_backward(const RowCall& call, const RowLaunch& launch);

}  // namespace fastloss
