// The element-wise engine's ops: shapes, allocation, threads and reductions around one instruction set's kernels.

#include "ops.h"

#include <ATen/ops/ones.h>
#include <torch/library.h>

#include <array>

namespace fastloss {
namespace {

#define FASTLOSS_NAME(stem, Functor) #stem,
constexpr const char* kElementwiseLosses[] = {FASTLOSS_ELEMENTWISE(FASTLOSS_NAME)};
#undef FASTLOSS_NAME

// An operand over sizes[0] x sizes[1] x sizes[2]; contiguous tensors of any rank are one row of elements.
Operand operand(const Tensor& t, bool flat) {
  Operand result{t.const_data_ptr(), {0, 0, 1}};
  if (!flat) {
    for (int64_t d = 0; d < t.dim(); ++d) result.strides[kMaxDims - t.dim() + d] = t.stride(d);
  }
  return result;
}

ElementwiseCall describe(
    const Tensor& input, const Tensor& target, const OptionalTensor& third, const OptionalTensor& weight, const OptionalTensor& grad_loss,
    at::ArrayRef<double> params, int64_t reduction) {
  const OptionalTensor all[] = {input, target, third, weight, grad_loss};
  bool flat = true;
  for (const auto& t : all) flat = flat && (!t || t->is_contiguous());
  TORCH_CHECK(flat || input.dim() <= kMaxDims, "elementwise engine: strided operands may have ", kMaxDims, " dimensions, got ",
              input.sizes());
  ElementwiseCall call{};
  call.sizes[0] = call.sizes[1] = call.sizes[2] = 1;
  if (flat) call.sizes[2] = input.numel();
  else for (int64_t d = 0; d < input.dim(); ++d) call.sizes[kMaxDims - input.dim() + d] = input.size(d);
  Operand* const slots[] = {&call.input, &call.target, &call.third, &call.weight, &call.grad_loss};
  for (int i = 0; i < 5; ++i) {
    if (!all[i]) continue;
    TORCH_CHECK(all[i]->sizes() == input.sizes() && all[i]->scalar_type() == input.scalar_type(),
                "elementwise engine: all operands must be ", input.scalar_type(), input.sizes(), ", got ", all[i]->scalar_type(),
                all[i]->sizes());
    *slots[i] = operand(*all[i], flat);
  }
  TORCH_CHECK(params.size() <= kMaxParams, "elementwise engine: at most ", kMaxParams, " parameters, got ", params.size());
  std::copy(params.begin(), params.end(), call.params);
  call.reduction = static_cast<int>(reduction);
  return call;
}

// Reduction::kRowSums of an input (R, C): the parts of a row are added in one order, whichever thread computed them.
Tensor row_sums(const ElementwiseCall& call, const Tensor& input, Scalar scalar, int index) {
  const int64_t rows = input.size(0), columns = input.size(1), parts = std::max<int64_t>(1, (columns + kGrain - 1) / kGrain);
  const Tensor loss = at::empty({rows}, input.options());
  std::vector<std::array<double, 2>> sums(rows * parts);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, std::min(columns, kGrain)));
  at::parallel_for(0, rows * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / parts * columns, first = i % parts * kGrain;
      kernels->elementwise_forward(call, scalar, index, row + first, row + std::min(columns, first + kGrain), sums[i].data());
    }
  });
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, loss.scalar_type(), "row_sums", [&] {
    auto* const values = loss.mutable_data_ptr<scalar_t>();
    for (int64_t row = 0; row < rows; ++row) {
      Compensated sum;
      for (int64_t part = 0; part < parts; ++part) sum.add(sums[row * parts + part][0]);
      values[row] = static_cast<scalar_t>(sum.value());
    }
  });
  return loss;
}

std::tuple<Tensor, Tensor> elementwise_forward(
    const Tensor& input, const Tensor& target, const OptionalTensor& third, const OptionalTensor& weight, c10::string_view functor,
    at::ArrayRef<double> params, int64_t reduction_code) {
  ElementwiseCall call = describe(input, target, third, weight, std::nullopt, params, reduction_code);
  const int index = functor_index("elementwise", kElementwiseLosses, functor);
  const Scalar scalar = scalar_of(input);
  const auto reduction = static_cast<Reduction>(reduction_code);
  const bool each = reduction == Reduction::kNone;
  const int64_t n = input.numel(), pieces = (n + kGrain - 1) / kGrain;
  const bool rows = reduction == Reduction::kRowSums || reduction == Reduction::kRowMean || reduction == Reduction::kColumnMean;
  TORCH_CHECK(!rows || input.dim() == 2, "elementwise engine: rows are summed of (R, C), got ", input.sizes());
  if (reduction == Reduction::kRowSums) {
    return {row_sums(call, input, scalar, index), at::ones({}, input.options().dtype(accumulate_type(input)))};
  }
  const Tensor loss = at::empty(each ? input.sizes() : at::IntArrayRef{}, input.options());
  const Tensor divisor = at::empty({}, input.options().dtype(accumulate_type(input)));
  if (each) {
    advise_huge_pages(loss);
    call.loss.data = loss.data_ptr();
  }
  c10::SmallVector<std::array<double, 2>, 8> sums(pieces);
  each_piece(n, [&](int64_t begin, int64_t end) {
    kernels->elementwise_forward(call, scalar, index, begin, end, sums[begin / kGrain].data());
  });

  const auto total = [&](int field) {
    Compensated sum;
    for (const auto& piece : sums) sum.add(piece[field]);
    return sum.value();
  };
  const double by = reduction == Reduction::kMean           ? static_cast<double>(n)
                    : reduction == Reduction::kRowMean      ? static_cast<double>(input.size(0))
                    : reduction == Reduction::kColumnMean   ? static_cast<double>(input.size(1))
                    : reduction == Reduction::kWeightedMean ? total(1)
                                                            : 1.0;
  AT_DISPATCH_FLOATING_TYPES(divisor.scalar_type(), "elementwise_forward", [&] {
    *divisor.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(by);
  });
  if (!each) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, loss.scalar_type(), "elementwise_forward", [&] {
      *loss.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(total(0) / by);
    });
  }
  return {loss, divisor};
}

std::tuple<Tensor, Tensor, Tensor> elementwise_backward(
    const Tensor& grad_loss, const Tensor& input, const Tensor& target, const OptionalTensor& third, const OptionalTensor& weight,
    const Tensor& divisor, c10::string_view functor, at::ArrayRef<double> params, int64_t reduction, bool want_input, bool want_target,
    bool want_third) {
  const bool each = static_cast<Reduction>(reduction) == Reduction::kNone;
  TORCH_CHECK(each || grad_loss.numel() == 1, "elementwise engine: an upstream gradient must be a scalar, got ", grad_loss.sizes());
  ElementwiseCall call = describe(input, target, third, weight, each ? OptionalTensor(grad_loss) : std::nullopt, params, reduction);
  const Tensor upstream = each ? grad_loss : grad_loss.to(accumulate_type(input));
  call.grad_scalar = upstream.const_data_ptr();
  call.divisor = divisor.data_ptr();
  const auto gradient = [&](bool wanted, Operand& slot) {
    Tensor grad = at::empty(wanted ? input.sizes() : at::IntArrayRef{0}, input.options());
    advise_huge_pages(grad);
    slot.data = wanted ? grad.data_ptr() : nullptr;
    return grad;
  };
  const Tensor grad_input = gradient(want_input, call.grad_input), grad_target = gradient(want_target, call.grad_target),
               grad_third = gradient(want_third, call.grad_third);
  const int index = functor_index("elementwise", kElementwiseLosses, functor);
  const Scalar scalar = scalar_of(input);
  each_piece(input.numel(), [&](int64_t begin, int64_t end) { kernels->elementwise_backward(call, scalar, index, begin, end); });
  return {grad_input, grad_target, grad_third};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("elementwise_forward.cpu", fastloss::elementwise_forward);
  m.impl("elementwise_backward.cpu", fastloss::elementwise_backward);
}
