// The `cpu` distance transform: exact Euclidean distances, one dimension after the other.

#include "ops.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

namespace fastloss {
namespace {

// The lower envelope of parabolas of width 1 over a line: Felzenszwalb and Huttenlocher 2012, algorithm 1.
class Envelope {
 public:
  explicit Envelope(int64_t length) : value_(length), place_(length), from_(length + 1) {}

  // Replaces each of n values, `stride` apart, by the least of value + squared distance. Infinite values are no parabola.
  template <class A>
  void apply(A* line, int64_t n, int64_t stride) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double height = static_cast<double>(line[i * stride]);
      if (height == kFar) continue;
      double start = -kFar;
      while (count > 0) {
        const double p = static_cast<double>(place_[count - 1]), q = static_cast<double>(i);
        start = ((height - value_[count - 1]) / (q - p) + p + q) / 2;  // where the new parabola gets below the last
        if (start > from_[count - 1]) break;
        start = -kFar;
        --count;
      }
      value_[count] = height;
      place_[count] = i;
      from_[count++] = start;
    }
    if (count == 0) return;
    from_[count] = kFar;
    int64_t k = 0;
    for (int64_t i = 0; i < n; ++i) {
      while (from_[k + 1] < static_cast<double>(i)) ++k;
      const double away = static_cast<double>(i - place_[k]);
      line[i * stride] = static_cast<A>(value_[k] + away * away);
    }
  }

  static constexpr double kFar = std::numeric_limits<double>::infinity();

 private:
  std::vector<double> value_;
  std::vector<int64_t> place_;
  std::vector<double> from_;
};

// Squared distances to the nearest element whose mask is `source`, infinite where a sample has none.
template <class A>
void squared_distances(const bool* mask, bool source, at::IntArrayRef sizes, int64_t elements, A* to) {
  at::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = mask[i] == source ? A(0) : std::numeric_limits<A>::infinity();
  });
  int64_t inner = elements / std::max<int64_t>(sizes[0], 1);
  for (size_t d = 1; d < sizes.size(); ++d) {
    const int64_t length = sizes[d], lines = elements / length;
    inner /= length;
    at::parallel_for(0, lines, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
      Envelope envelope(length);
      for (int64_t line = begin; line < end; ++line) {
        envelope.apply(to + line / inner * inner * length + line % inner, length, inner);
      }
    });
  }
}

Tensor distance_transform(const Tensor& mask_, at::ScalarType dtype) {
  TORCH_CHECK(mask_.dim() >= 1 && mask_.scalar_type() == at::kBool, "distance_transform: mask must be bool (N, d1, ...), got ",
              mask_.scalar_type(), mask_.sizes());
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble, "distance_transform: dtype must be float32 or float64, got ", dtype);
  const Tensor mask = mask_.contiguous();
  const Tensor result = at::empty(mask.sizes(), mask.options().dtype(dtype)), other = at::empty_like(result);
  const int64_t elements = mask.numel();
  if (elements == 0) return result;
  AT_DISPATCH_FLOATING_TYPES(dtype, "distance_transform", [&] {
    scalar_t* const to = result.mutable_data_ptr<scalar_t>();
    scalar_t* const inside = other.mutable_data_ptr<scalar_t>();
    squared_distances(mask.const_data_ptr<bool>(), false, mask.sizes(), elements, to);
    squared_distances(mask.const_data_ptr<bool>(), true, mask.sizes(), elements, inside);
    at::parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const scalar_t both = to[i] + inside[i];  // one of them is 0
        to[i] = std::isfinite(both) ? std::sqrt(both) : scalar_t(0);
      }
    });
  });
  return result;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) { m.impl("distance_transform.cpu", fastloss::distance_transform); }
