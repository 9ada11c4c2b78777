// The overlap engine's ops: shapes, allocation, threads and the sum over items around one instruction set's kernels.

#include "ops.h"

#include <torch/library.h>

#include <atomic>

namespace fastloss {
namespace {

constexpr int64_t kMaxClasses = 1 << 24;  // the kernel compares classes as floats

#define FASTLOSS_NAME(stem, ...) #stem,
constexpr const char* kFunctors[] = {FASTLOSS_OVERLAP(FASTLOSS_NAME)};
#undef FASTLOSS_NAME

void set_strides(int64_t (&strides)[3], const Tensor& t) {
  for (int d = 0; d < 3; ++d) strides[d] = t.stride(d);
}

OverlapCall describe(const Tensor& input, const Tensor& target, at::ArrayRef<double> params, int64_t first_label,
                     std::optional<int64_t> ignore_index) {
  TORCH_CHECK(input.dim() == 3 && input.size(1) <= kMaxClasses, "overlap engine: input must be (N, C, S) with at most ", kMaxClasses,
              " classes, got ", input.sizes());
  OverlapCall call{};
  call.samples = input.size(0);
  call.classes = input.size(1);
  call.pixels = input.size(2);
  call.input = input.const_data_ptr();
  call.target = target.const_data_ptr();
  set_strides(call.input_strides, input);
  if (target.dim() == 2) {
    TORCH_CHECK(at::isIntegralType(target.scalar_type(), true) && target.size(0) == call.samples && target.size(1) == call.pixels,
                "overlap engine: labels must be integers (", call.samples, ", ", call.pixels, "), got ", target.scalar_type(),
                target.sizes());
    call.target_strides[0] = target.stride(0);
    call.target_strides[2] = target.stride(1);
    call.label_bytes = static_cast<int>(target.element_size());
    call.label_signed = at::isSignedType(target.scalar_type());
  } else {
    TORCH_CHECK(target.sizes() == input.sizes() && target.scalar_type() == input.scalar_type(),
                "overlap engine: a target of numbers must be ", input.scalar_type(), input.sizes(), ", got ", target.scalar_type(),
                target.sizes());
    set_strides(call.target_strides, target);
  }
  TORCH_CHECK(params.size() <= kMaxParams, "overlap engine: at most ", kMaxParams, " parameters, got ", params.size());
  std::copy(params.begin(), params.end(), call.params);
  call.first_label = first_label;
  call.has_ignore = ignore_index.has_value();
  call.ignore_index = ignore_index.value_or(0);
  return call;
}

template <class Run>
void each_item(const OverlapCall& call, const Run& run) {
  const int64_t items = kernels->overlap_items(call);
  const int64_t elements = call.samples * call.classes * call.pixels / std::max<int64_t>(items, 1);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  if (items <= grain) run(0, items);
  else at::parallel_for(0, items, grain, run);
}

void raise_unknown_label(const OverlapCall& call, const Tensor& target) {
  const Tensor labels = target.to(at::kLong).contiguous();
  const int64_t known = call.classes + call.first_label, *begin = labels.const_data_ptr<int64_t>(), *end = begin + labels.numel();
  const auto* label = std::find_if(begin, end, [&](int64_t y) {
    return (!call.has_ignore || y != call.ignore_index) && (y < 0 || y >= known);
  });
  TORCH_CHECK_INDEX(false, "Target ", label == end ? known : *label, " is out of bounds: wanted 0 <= target < ", known,
                    call.has_ignore ? " or ignore_index=" + std::to_string(call.ignore_index) : std::string());
}

Tensor overlap_forward(const Tensor& input, const Tensor& target, c10::string_view functor, at::ArrayRef<double> params,
                       int64_t first_label, std::optional<int64_t> ignore_index) {
  const OverlapCall call = describe(input, target, params, first_label, ignore_index);
  const int index = functor_index("overlap", kFunctors, functor);
  const Scalar scalar = scalar_of(input);
  const int64_t sums = call.classes * kStatistics, items = kernels->overlap_items(call);
  std::vector<double> partials(items * sums, 0.0);
  std::atomic<bool> known = true;
  each_item(call, [&](int64_t begin, int64_t end) {
    if (!kernels->overlap_forward(call, scalar, index, begin, end, partials.data())) known = false;
  });
  if (!known) raise_unknown_label(call, target);
  const Tensor statistics = at::empty({call.samples, call.classes, kStatistics}, input.options().dtype(accumulate_type(input)));
  const int64_t each = call.samples ? items / call.samples : 0;
  AT_DISPATCH_FLOATING_TYPES(statistics.scalar_type(), "overlap_forward", [&] {
    auto* out = statistics.mutable_data_ptr<scalar_t>();
    for (int64_t n = 0; n < call.samples; ++n) {
      for (int64_t i = 0; i < sums; ++i) {
        Compensated sum;
        for (int64_t item = n * each; item < (n + 1) * each; ++item) sum.add(partials[item * sums + i]);
        out[n * sums + i] = static_cast<scalar_t>(sum.value());
      }
    }
  });
  return statistics;
}

std::tuple<Tensor, Tensor> overlap_backward(const Tensor& grad, const Tensor& input, const Tensor& target, c10::string_view functor,
                                            at::ArrayRef<double> params, int64_t first_label, std::optional<int64_t> ignore_index,
                                            bool want_input, bool want_target) {
  OverlapCall call = describe(input, target, params, first_label, ignore_index);
  TORCH_CHECK(grad.is_contiguous() && grad.scalar_type() == accumulate_type(input) &&
                  grad.numel() == call.samples * call.classes * kStatistics,
              "overlap engine: an upstream gradient must be contiguous ", accumulate_type(input), " (N, C, ", int(kStatistics), "), got ",
              grad.scalar_type(), grad.sizes());
  const auto gradient = [&](bool wanted, const Tensor& like, void*& slot, int64_t (&strides)[3]) {
    Tensor result = wanted ? at::empty_like(like) : at::empty({0}, like.options());
    if (wanted) {
      advise_huge_pages(result);
      slot = result.data_ptr();
      set_strides(strides, result);
    }
    return result;
  };
  call.grad_statistics = grad.const_data_ptr();
  const Tensor grad_input = gradient(want_input, input, call.grad_input, call.grad_strides);
  const Tensor grad_target = gradient(want_target, target, call.grad_target, call.grad_target_strides);
  const int index = functor_index("overlap", kFunctors, functor);
  const Scalar scalar = scalar_of(input);
  each_item(call, [&](int64_t begin, int64_t end) { kernels->overlap_backward(call, scalar, index, begin, end); });
  return {grad_input, grad_target};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("overlap_forward.cpu", fastloss::overlap_forward);
  m.impl("overlap_backward.cpu", fastloss::overlap_backward);
}
