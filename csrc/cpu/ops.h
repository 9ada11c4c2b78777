// What the ops of the `cpu` backend share: checks of functors and dtypes, threads over pieces of fixed size, compensated sums.
// Every engine has its ops in a file of its own.
#pragma once

#include "kernels.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

namespace fastloss {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

extern const Kernels* kernels;  // of the instruction set in use

constexpr int64_t kGrain = 32768;  // elements that are worth a thread

template <size_t N>
inline int functor_index(const char* engine, const char* const (&names)[N], c10::string_view name) {
  const auto found = std::find(names, names + N, name);
  TORCH_CHECK_VALUE(found != names + N, engine, " engine: no compiled loss is named '", name, "'");
  return static_cast<int>(found - names);
}

inline Scalar scalar_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Scalar::kFloat;
    case at::kDouble: return Scalar::kDouble;
    case at::kBFloat16: return Scalar::kBFloat16;
    case at::kHalf: return Scalar::kHalf;
    default: TORCH_CHECK(false, "fastloss: input must be float32, float64, bfloat16 or float16, got ", t.scalar_type());
  }
}

inline at::ScalarType accumulate_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Ask for 2 MB pages: fresh memory costs a page fault per page and its zeroing; 2 MB pages make that five times cheaper.
void advise_huge_pages(const Tensor& t);

// run(begin, end) over rows in pieces of a fixed size, so that what a piece computes does not depend on the threads.
template <class Run>
void each_piece(int64_t rows, const Run& run, int64_t grain = kGrain) {
  const int64_t pieces = (rows + grain - 1) / grain;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i * grain, std::min(rows, (i + 1) * grain));
  };
  if (pieces <= 1) piece(0, pieces);
  else at::parallel_for(0, pieces, 1, piece);
}

// A sum with the rounding errors of its additions (Knuth 1969): exact to a rounding for any number of terms.
struct Compensated {
  double total = 0, lost = 0;
  void add(double x) {
    const double sum = total + x, back = sum - total;
    lost += (total - (sum - back)) + (x - back);
    total = sum;
  }
  double value() const { return std::isfinite(total) ? total + lost : total; }
};

template <class Value>
double sum_rows(int64_t rows, const Value& value) {
  constexpr int kLanes = 8;  // independent chains
  std::vector<Compensated> pieces((rows + kGrain - 1) / kGrain);
  each_piece(rows, [&](int64_t begin, int64_t end) {
    Compensated lanes[kLanes];
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int k = 0; k < kLanes; ++k) lanes[k].add(value(i + k));
    }
    for (; i < end; ++i) lanes[0].add(value(i));
    for (int k = 1; k < kLanes; ++k) {
      lanes[0].add(lanes[k].total);
      lanes[0].lost += lanes[k].lost;
    }
    pieces[begin / kGrain] = lanes[0];
  });
  Compensated sum;
  for (const auto& piece : pieces) {
    sum.add(piece.total);
    sum.lost += piece.lost;
  }
  return sum.value();
}

}  // namespace fastloss
