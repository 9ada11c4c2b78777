// The `cpu` overloads of the divergence engine's ops: shapes, allocation, threads and reductions around one instruction set's kernels.

#include "ops.h"

#include <torch/library.h>

namespace fastloss {
namespace {

#define FASTLOSS_NAME(stem, Functor) #stem,
constexpr const char* kDivergences[] = {FASTLOSS_DIVERGENCE(FASTLOSS_NAME)};
#undef FASTLOSS_NAME

struct Settings {
  c10::string_view functor;
  at::ArrayRef<double> params;
  double first_scale, second_scale, factor;
  int64_t reduction;
  bool zero_empty;
};

#define FASTLOSS_SETTINGS \
  c10::string_view functor, at::ArrayRef<double> params, double first_scale, double second_scale, double factor, int64_t reduction, \
      bool zero_empty, at::ScalarType dtype
#define FASTLOSS_SETTING_VALUES {functor, params, first_scale, second_scale, factor, reduction, zero_empty}

void check_side(const char* what, const Tensor& t, const Tensor& first) {
  TORCH_CHECK(t.dim() == 2 && t.sizes() == first.sizes() && t.scalar_type() == first.scalar_type(), "divergence engine: ", what,
              " must be (R, C) like the first side ", first.scalar_type(), first.sizes(), ", got ", t.scalar_type(), t.sizes());
  TORCH_CHECK(t.numel() == 0 || t.size(1) == 1 || t.stride(1) == 1, "divergence engine: ", what,
              " must have unit stride in its last dimension, got strides ", t.strides());
}

const void* numbers(const char* what, const OptionalTensor& t, int64_t count, const Tensor& first) {
  if (!t) return nullptr;
  TORCH_CHECK(t->scalar_type() == accumulate_type(first) && t->numel() == count && t->is_contiguous(), "divergence engine: ", what,
              " must be ", count, " contiguous ", accumulate_type(first), ", got ", t->scalar_type(), t->sizes());
  return t->const_data_ptr();
}

DivergenceCall describe(
    const Tensor& first, const Tensor& second, const OptionalTensor& centre, const OptionalTensor& weight, const Settings& s) {
  check_side("the first side", first, first);
  check_side("the second side", second, first);
  DivergenceCall call{};
  call.first = first.const_data_ptr();
  call.second = second.const_data_ptr();
  call.rows = first.size(0);
  call.classes = first.size(1);
  call.first_stride = first.stride(0);
  call.second_stride = second.stride(0);
  call.centre = numbers("centre", centre, call.classes, first);
  call.weight = numbers("weight", weight, call.rows, first);
  TORCH_CHECK(s.params.size() <= kMaxParams, "divergence engine: at most ", kMaxParams, " parameters, got ", s.params.size());
  std::copy(s.params.begin(), s.params.end(), call.params);
  call.first_scale = s.first_scale;
  call.second_scale = s.second_scale;
  call.factor = s.factor;
  call.reduction = static_cast<int>(s.reduction);
  call.zero_empty = s.zero_empty;
  return call;
}

template <class Run>
void each_row(const DivergenceCall& call, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kGrain / 2 / std::max<int64_t>(call.classes, 1));
  if (call.rows <= grain) run(0, call.rows);
  else at::parallel_for(0, call.rows, grain, run);
}

// The loss and what it was divided by, from those of the rows.
template <class A>
void reduce(const DivergenceCall& call, const Tensor& loss) {
  const auto* rows = static_cast<const A*>(call.row_loss);
  const auto* weight = static_cast<const A*>(call.weight);
  double by = 1;
  if (static_cast<Reduction>(call.reduction) == Reduction::kMean) {
    by = weight ? sum_rows(call.rows, [&](int64_t i) { return weight[i]; }) : static_cast<double>(call.rows);
    if (by == 0) by = call.zero_empty ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  *static_cast<A*>(call.divisor) = static_cast<A>(by);
  if (static_cast<Reduction>(call.reduction) == Reduction::kNone) return;
  const double value = sum_rows(call.rows, [&](int64_t i) { return rows[i]; }) / by;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, loss.scalar_type(), "divergence_forward", [&] {
    *loss.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(value);
  });
}

std::tuple<Tensor, Tensor, Tensor> divergence_forward(
    const Tensor& first, const Tensor& second, const OptionalTensor& centre, const OptionalTensor& weight, FASTLOSS_SETTINGS) {
  DivergenceCall call = describe(first, second, centre, weight, FASTLOSS_SETTING_VALUES);
  const int index = functor_index("divergence", kDivergences, functor);
  const Scalar scalar = scalar_of(first);
  const bool each = static_cast<Reduction>(reduction) == Reduction::kNone;
  const auto options = first.options().dtype(accumulate_type(first));
  const Tensor loss = at::empty(each ? at::IntArrayRef{call.rows} : at::IntArrayRef{}, first.options().dtype(dtype));
  const Tensor stats = at::empty({kDivergenceStats, call.rows}, options), divisor = at::empty({}, options);
  const Tensor row_loss = each && dtype == accumulate_type(first) ? loss : at::empty({call.rows}, options);
  call.stats = stats.data_ptr();
  call.divisor = divisor.data_ptr();
  call.row_loss = row_loss.data_ptr();
  each_row(call, [&](int64_t begin, int64_t end) { kernels->divergence_forward(call, scalar, index, begin, end); });
  if (accumulate_type(first) == at::kDouble) reduce<double>(call, loss);
  else reduce<float>(call, loss);
  if (each && !row_loss.is_same(loss)) loss.copy_(row_loss);
  return {loss, stats, divisor};
}

std::tuple<Tensor, Tensor> divergence_backward(
    const Tensor& grad_loss, const Tensor& first, const Tensor& second, const OptionalTensor& centre, const OptionalTensor& weight,
    const Tensor& stats, const Tensor& divisor, FASTLOSS_SETTINGS, bool want_first, bool want_second) {
  DivergenceCall call = describe(first, second, centre, weight, FASTLOSS_SETTING_VALUES);
  const int index = functor_index("divergence", kDivergences, functor);
  const Scalar scalar = scalar_of(first);
  const bool each = static_cast<Reduction>(reduction) == Reduction::kNone;
  call.grad_loss = numbers("an upstream gradient", grad_loss, each ? call.rows : 1, first);
  numbers("stats", stats, kDivergenceStats * call.rows, first);
  call.stats = stats.data_ptr();
  call.divisor = divisor.data_ptr();
  const auto gradient = [&](bool wanted, void*& slot) {
    Tensor grad = at::empty(wanted ? first.sizes() : at::IntArrayRef{0}, first.options());
    advise_huge_pages(grad);
    slot = wanted ? grad.data_ptr() : nullptr;
    return grad;
  };
  const Tensor grad_first = gradient(want_first, call.grad_first), grad_second = gradient(want_second, call.grad_second);
  each_row(call, [&](int64_t begin, int64_t end) { kernels->divergence_backward(call, scalar, index, begin, end); });
  return {grad_first, grad_second};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("divergence_forward.cpu", fastloss::divergence_forward);
  m.impl("divergence_backward.cpu", fastloss::divergence_backward);
}
