// The margin engine's ops: shapes, allocation, threads and reductions around one instruction set's kernels.

#include "ops.h"

#include <torch/library.h>

namespace fastloss {
namespace {

MarginCall describe(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t p, double margin) {
  TORCH_CHECK(input.dim() == 2 && target.dim() == 2 && target.size(0) == input.size(0) && target.scalar_type() == at::kLong &&
                  target.is_contiguous() && (p == 1 || p == 2),
              "margin engine: wanted input (N, C) and contiguous int64 target (N, L), got ", input.sizes(), " and ", target.scalar_type(),
              target.sizes());
  TORCH_CHECK(!weight || (weight->scalar_type() == accumulate_type(input) && weight->numel() == input.size(1) && weight->is_contiguous()),
              "margin engine: weight must be ", input.size(1), " contiguous ", accumulate_type(input));
  MarginCall call{};
  call.input = input.const_data_ptr();
  call.rows = input.size(0);
  call.classes = input.size(1);
  call.row_stride = input.stride(0);
  call.class_stride = input.stride(1);
  call.target = target.const_data_ptr<int64_t>();
  call.labels = target.size(1);
  call.weight = weight ? weight->const_data_ptr() : nullptr;
  call.squared = p == 2;
  call.margin = margin;
  return call;
}

template <class Run>
void each_row(const MarginCall& call, const Run& run) {
  at::parallel_for(0, call.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, call.classes)), run);
}

Tensor margin_forward(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t p, double margin, int64_t reduction_code) {
  MarginCall call = describe(input, target, weight, p, margin);
  const int64_t least = call.labels == 1 && call.classes > 1 ? 0 : std::numeric_limits<int64_t>::min();  // lists end at the first -1
  TORCH_CHECK(std::all_of(call.target, call.target + target.numel(), [&](int64_t label) { return label >= least && label < call.classes; }),
              "margin engine: a label is out of bounds: wanted 0 <= target < ", call.classes);
  const Tensor rows = at::empty({call.rows}, input.options().dtype(accumulate_type(input)));
  call.row_loss = rows.data_ptr();
  each_row(call, [&](int64_t begin, int64_t end) { kernels->margin_forward(call, scalar_of(input), begin, end); });
  const auto reduction = static_cast<Reduction>(reduction_code);
  if (reduction == Reduction::kNone) return rows.to(input.scalar_type());
  const Tensor loss = at::empty({}, input.options());
  AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "margin_forward", [&] {
    const auto* values = rows.const_data_ptr<scalar_t>();
    const double total = sum_rows(call.rows, [&](int64_t i) { return static_cast<double>(values[i]); });
    loss.fill_(reduction == Reduction::kMean ? total / static_cast<double>(call.rows) : total);
  });
  return loss;
}

Tensor margin_backward(
    const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t p, double margin,
    int64_t reduction) {
  MarginCall call = describe(input, target, weight, p, margin);
  call.per_row = static_cast<Reduction>(reduction) == Reduction::kNone;
  TORCH_CHECK(grad_loss.numel() == (call.per_row ? call.rows : 1), "margin engine: an upstream gradient must have one number a loss, got ",
              grad_loss.sizes());
  const Tensor upstream = grad_loss.to(accumulate_type(input)).contiguous();
  call.grad_loss = upstream.const_data_ptr();
  call.divisor = static_cast<Reduction>(reduction) == Reduction::kMean ? static_cast<double>(call.rows) : 1.0;
  Tensor grad = at::empty(input.sizes(), input.options());
  advise_huge_pages(grad);
  call.grad = grad.data_ptr();
  each_row(call, [&](int64_t begin, int64_t end) { kernels->margin_backward(call, scalar_of(input), begin, end); });
  return grad;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("margin_forward.cpu", fastloss::margin_forward);
  m.impl("margin_backward.cpu", fastloss::margin_backward);
}
