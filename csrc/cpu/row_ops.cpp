// The row engine's ops: shapes, allocation, threads and reductions around one instruction set's kernels.

#include "ops.h"

#include <torch/library.h>

#include <atomic>

namespace fastloss {
namespace {

constexpr int64_t kMaxStridedClasses = 1 << 24;  // the kernel compares classes as floats

#define FASTLOSS_NAME(stem, Functor) #stem,
constexpr const char* kRowLosses[] = {FASTLOSS_ROW(FASTLOSS_NAME)};
#undef FASTLOSS_NAME
#define FASTLOSS_STABLEMAX(stem, Functor) Functor::kStablemax,
constexpr bool kStablemax[] = {FASTLOSS_ROW(FASTLOSS_STABLEMAX)};
#undef FASTLOSS_STABLEMAX

// Either (R, C) with unit stride over C, or (O, C, I) with unit stride over I.
void check_layout(const char* what, const Tensor& t) {
  TORCH_CHECK(t.dim() == 2 || t.dim() == 3, "row engine: ", what, " must be (R, C) or (O, C, I), got shape ", t.sizes());
  TORCH_CHECK(t.dim() == 2 || t.size(1) <= kMaxStridedClasses, "row engine: at most ", kMaxStridedClasses, " strided classes, got ",
              t.sizes());
  TORCH_CHECK(t.numel() == 0 || t.size(-1) == 1 || t.stride(-1) == 1, "row engine: ", what,
              " must have unit stride in its last dimension, got strides ", t.strides());
}

struct Settings {
  c10::string_view functor;
  at::ArrayRef<double> params;
  double label_smoothing, z_loss, softcap, logit_scale;
  bool stablemax;
  int64_t ignore_index, reduction;
};

int functor_of(const Settings& s) {
  const int index = functor_index("row", kRowLosses, s.functor);
  TORCH_CHECK(!s.stablemax || kStablemax[index], "row engine: no stablemax for ", s.functor);
  return index;
}

RowCall describe(const Tensor& input, const Tensor& target, const OptionalTensor& weight, const Settings& s) {
  check_layout("input", input);
  RowCall call{};
  const bool flat = input.dim() == 2;
  call.input = input.const_data_ptr();
  call.outer = input.size(0);
  call.classes = input.size(1);
  call.inner = flat ? 1 : input.size(2);
  call.outer_stride = input.stride(0);
  call.class_stride = flat ? 1 : input.stride(1);
  const int64_t rows = call.outer * call.inner;
  call.target = target.const_data_ptr();
  if (target.is_floating_point()) {
    check_layout("target", target);
    TORCH_CHECK(target.sizes() == input.sizes() && target.scalar_type() == input.scalar_type(),
                "row engine: a target of probabilities must be like the input ", input.scalar_type(), input.sizes(), ", got ",
                target.scalar_type(), target.sizes());
    call.target_outer_stride = target.stride(0);
    call.target_class_stride = flat ? 1 : target.stride(1);
  } else {
    TORCH_CHECK(target.scalar_type() == at::kLong && target.dim() == 1 && target.numel() == rows && target.is_contiguous(),
                "row engine: an index target must be ", rows, " contiguous int64, got ", target.scalar_type(), target.sizes());
  }
  if (weight) {
    TORCH_CHECK(weight->scalar_type() == accumulate_type(input) && weight->numel() == call.classes && weight->is_contiguous(),
                "row engine: weight must be ", call.classes, " contiguous ", accumulate_type(input), ", got ", weight->scalar_type(),
                weight->sizes());
    call.weight = weight->const_data_ptr();
  }
  TORCH_CHECK(s.params.size() <= kMaxParams, "row engine: at most ", kMaxParams, " parameters, got ", s.params.size());
  std::copy(s.params.begin(), s.params.end(), call.params);
  call.label_smoothing = s.label_smoothing;
  call.z_loss = s.z_loss;
  call.softcap = s.softcap;
  call.logit_scale = s.logit_scale;
  call.stablemax = s.stablemax;
  call.ignore_index = s.ignore_index;
  call.reduction = static_cast<int>(s.reduction);
  return call;
}

void set_stats(RowCall& call, const Tensor& stats, int64_t rows) {
  auto* base = static_cast<char*>(stats.data_ptr());
  const auto bytes = rows * static_cast<int64_t>(stats.element_size());
  call.max = base;
  call.log_sum = base + bytes;
  call.slope = base + 2 * bytes;
}

template <class Run>
void each_item(const RowCall& call, const Run& run) {
  if (call.outer == 0 || call.inner == 0) return;
  const int64_t items = kernels->row_items(call);
  const int64_t elements = call.outer * call.inner * std::max<int64_t>(call.classes, 1) / std::max<int64_t>(items, 1);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1));
  if (items <= grain) run(0, items);
  else at::parallel_for(0, items, grain, run);
}

// The number of rows that count; raises for a label that no class has.
int64_t count_labels(const RowCall& call) {
  const auto* labels = static_cast<const int64_t*>(call.target);
  const auto unknown = [&](int64_t i) {
    return (labels[i] != call.ignore_index) & (static_cast<uint64_t>(labels[i]) >= static_cast<uint64_t>(call.classes));
  };
  const int64_t rows = call.outer * call.inner;
  std::atomic<int64_t> counted = 0;
  std::atomic<bool> wrong = false;
  each_piece(rows, [&](int64_t begin, int64_t end) {
    int64_t count = 0, bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      count += labels[i] != call.ignore_index;
      bad += unknown(i);
    }
    counted += count;
    if (bad) wrong = true;
  });
  if (wrong) {
    int64_t i = 0;
    while (!unknown(i)) ++i;
    TORCH_CHECK_INDEX(false, "Target ", labels[i], " is out of bounds: wanted 0 <= target < ", call.classes, " or ignore_index=",
                      call.ignore_index);
  }
  return counted;
}

template <class A>
double divisor_of(const RowCall& call, bool soft, int64_t counted) {
  const auto* weight = static_cast<Reduction>(call.reduction) == Reduction::kMean ? static_cast<const A*>(call.weight) : nullptr;
  if (soft || !weight) return static_cast<double>(counted);
  const auto* labels = static_cast<const int64_t*>(call.target);
  return sum_rows(call.outer * call.inner, [&](int64_t i) {
    return labels[i] == call.ignore_index ? 0.0 : static_cast<double>(weight[labels[i]]);
  });
}

template <class A>
void reduce(const RowCall& call, bool soft, int64_t counted, Tensor& loss) {
  const auto* rows = static_cast<const A*>(call.row_loss);
  double divisor = 1;
  const auto reduction = static_cast<Reduction>(call.reduction);
  if (reduction == Reduction::kMean || reduction == Reduction::kRowMean) {
    divisor = divisor_of<A>(call, soft, counted);
    // Over nothing: NaN whatever smoothing or z_loss have added, as in torch; or, divided by infinity, 0.
    if (divisor == 0) divisor = call.zero_empty ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  *static_cast<A*>(call.divisor) = static_cast<A>(divisor);
  if (reduction == Reduction::kNone) return;
  const double value = sum_rows(call.outer * call.inner, [&](int64_t i) { return static_cast<double>(rows[i]); }) / divisor;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, loss.scalar_type(), "row_forward", [&] {
    *loss.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(value);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> row_forward(
    const Tensor& input, const Tensor& target_, const OptionalTensor& weight, c10::string_view functor, at::ArrayRef<double> params,
    double label_smoothing, double z_loss, double softcap, double logit_scale, bool stablemax, int64_t ignore_index, int64_t reduction,
    bool zero_empty, bool want_entropy, bool want_accuracy, at::ScalarType dtype) {
  const bool soft = target_.is_floating_point();
  const Tensor target = soft ? target_ : target_.contiguous();
  const Settings settings{functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction};
  RowCall call = describe(input, target, weight, settings);
  const int index = functor_of(settings);
  const Scalar scalar = scalar_of(input);
  const int64_t rows = call.outer * call.inner, counted = soft ? rows : count_labels(call);
  const auto options = input.options().dtype(accumulate_type(input));
  const Tensor stats = at::empty({3, rows}, options), divisor = at::empty({}, options);
  const Tensor entropy = at::empty({want_entropy ? rows : 0}, options), accuracy = at::empty({want_accuracy ? rows : 0}, options);
  const bool per_row = static_cast<Reduction>(reduction) == Reduction::kNone;
  Tensor loss = at::empty(per_row ? at::IntArrayRef{rows} : at::IntArrayRef{}, input.options().dtype(dtype));
  Tensor row_loss = per_row && dtype == accumulate_type(input) ? loss : at::empty({rows}, options);

  set_stats(call, stats, rows);
  call.row_loss = row_loss.data_ptr();
  call.divisor = divisor.data_ptr();
  call.entropy = want_entropy ? entropy.data_ptr() : nullptr;
  call.accuracy = want_accuracy ? accuracy.data_ptr() : nullptr;
  call.zero_empty = zero_empty;
  each_item(call, [&](int64_t begin, int64_t end) { kernels->row_forward(call, scalar, index, soft, begin, end); });
  if (accumulate_type(input) == at::kDouble) reduce<double>(call, soft, counted, loss);
  else reduce<float>(call, soft, counted, loss);
  if (per_row && !row_loss.is_same(loss)) loss.copy_(row_loss);
  return {loss, stats, divisor, entropy, accuracy};
}

void backward_into(
    Tensor& grad, const OptionalTensor& grad_loss, const OptionalTensor& grad_lse, const OptionalTensor& grad_entropy, const Tensor& input,
    const Tensor& target_, const OptionalTensor& weight, const Tensor& stats, const Tensor& divisor, const OptionalTensor& entropy,
    const Settings& settings) {
  const bool soft = target_.is_floating_point();
  const Tensor target = soft ? target_ : target_.contiguous();
  RowCall call = describe(input, target, weight, settings);
  const int index = functor_of(settings);
  const int64_t rows = call.outer * call.inner;
  const auto upstream = [&](const OptionalTensor& gradient, int64_t count) {
    if (!gradient) return Tensor();
    TORCH_CHECK(gradient->numel() == count, "row engine: an upstream gradient must have ", count, " elements, got ", gradient->sizes());
    return gradient->to(accumulate_type(input)).contiguous();
  };
  const Tensor from_loss = upstream(grad_loss, static_cast<Reduction>(settings.reduction) == Reduction::kNone ? rows : 1);
  const Tensor from_lse = upstream(grad_lse, rows), from_entropy = upstream(grad_entropy, rows);
  set_stats(call, stats, rows);
  call.divisor = divisor.data_ptr();
  call.entropy = entropy ? entropy->data_ptr() : nullptr;
  call.grad_loss = from_loss.defined() ? from_loss.const_data_ptr() : nullptr;
  call.grad_lse = from_lse.defined() ? from_lse.const_data_ptr() : nullptr;
  call.grad_entropy = from_entropy.defined() ? from_entropy.const_data_ptr() : nullptr;
  call.grad = grad.data_ptr();
  call.grad_outer_stride = grad.stride(0);
  call.grad_class_stride = grad.dim() == 2 ? 1 : grad.stride(1);
  const Scalar scalar = scalar_of(input);
  each_item(call, [&](int64_t begin, int64_t end) { kernels->row_backward(call, scalar, index, soft, begin, end); });
}

#define FASTLOSS_BACKWARD_ARGS(INPUT) \
  const OptionalTensor &grad_loss, const OptionalTensor &grad_lse, const OptionalTensor &grad_entropy, INPUT input, const Tensor &target, \
      const OptionalTensor &weight, const Tensor &stats, const Tensor &divisor, const OptionalTensor &entropy, c10::string_view functor, \
      at::ArrayRef<double> params, double label_smoothing, double z_loss, double softcap, double logit_scale, bool stablemax, \
      int64_t ignore_index, int64_t reduction
#define FASTLOSS_BACKWARD_VALUES \
  grad_loss, grad_lse, grad_entropy, input, target, weight, stats, divisor, entropy, { \
    functor, params, label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction \
  }

Tensor row_backward(FASTLOSS_BACKWARD_ARGS(const Tensor&)) {
  Tensor grad = at::empty_like(input);
  // empty_like keeps the strides of a dense input; the kernel needs unit stride over the last dimension.
  if (grad.size(-1) != 1 && grad.stride(-1) != 1) grad = at::empty_like(input, at::MemoryFormat::Contiguous);
  advise_huge_pages(grad);
  backward_into(grad, FASTLOSS_BACKWARD_VALUES);
  return grad;
}

void row_backward_(FASTLOSS_BACKWARD_ARGS(Tensor&)) { backward_into(input, FASTLOSS_BACKWARD_VALUES); }

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("row_forward.cpu", fastloss::row_forward);
  m.impl("row_backward.cpu", fastloss::row_backward);
  m.impl("row_backward_.cpu", fastloss::row_backward_);
}
