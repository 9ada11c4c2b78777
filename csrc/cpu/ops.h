// What the ops of all engines share: threads, memory and exact sums.
#pragma once

#include "kernels.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <sys/mman.h>

#include <algorithm>
#include <cmath>

namespace fastloss {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

extern const Kernels* kernels;  // of the instruction set that was chosen

constexpr int64_t kGrain = 32768;              // elements that are worth a thread
constexpr size_t kHugePage = size_t{1} << 21;  // bytes

// The number of a functor in its engine's list.
template <size_t N>
int functor_index(const char* engine, const char* const (&names)[N], c10::string_view name) {
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

// Fresh memory costs a page fault per page and its zeroing; 2 MB pages make that five times cheaper. Up to 32 MB the C library
// gives used memory out again, which costs neither.
inline void advise_huge_pages(const Tensor& t) {
  const size_t bytes = t.nbytes();
  if (bytes < 16 * kHugePage) return;
  const auto start = reinterpret_cast<uintptr_t>(t.data_ptr());
  const auto first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const auto last = (start + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: failure costs only time
}

// run(begin, end) over rows in pieces of a fixed size, so that what a piece computes does not depend on the threads.
template <class Run>
void each_piece(int64_t rows, const Run& run) {
  const int64_t pieces = (rows + kGrain - 1) / kGrain;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i * kGrain, std::min(rows, (i + 1) * kGrain));
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

}  // namespace fastloss
