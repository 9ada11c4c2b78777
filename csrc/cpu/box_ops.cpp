// The `cpu` overloads of the box engine's ops: shapes, allocation, threads and reductions around one instruction set's kernels.

#include "ops.h"

#include <torch/library.h>

#include <tuple>
#include <vector>

namespace fastloss {
namespace {

constexpr int64_t kRows = 4096;   // boxes that are worth a thread
constexpr int64_t kPairs = 8192;  // and pairs of them

#define FASTLOSS_NAME(stem, Functor) #stem,
constexpr const char* kBoxLosses[] = {FASTLOSS_BOX(FASTLOSS_NAME)};
#undef FASTLOSS_NAME

Boxes boxes(const Tensor& t, const Tensor& like) {
  TORCH_CHECK(t.dim() == 2 && t.size(1) == 4 && t.scalar_type() == like.scalar_type(), "box engine: boxes must be (rows, 4) of ",
              like.scalar_type(), ", got ", t.scalar_type(), t.sizes());
  return {t.const_data_ptr(), t.size(0) == 1 ? 4 : t.stride(0), t.stride(1)};
}

template <class Call>
Call with_boxes(const Tensor& boxes1, const Tensor& boxes2, at::ArrayRef<double> params) {
  Call call{};
  call.rows = boxes1.size(0);
  call.first = boxes(boxes1, boxes1);
  call.second = boxes(boxes2, boxes1);
  TORCH_CHECK(params.size() == 2, "box engine: wanted 2 parameters, got ", params.size());
  std::copy(params.begin(), params.end(), call.params);
  return call;
}

BoxCall describe(const Tensor& boxes1, const Tensor& boxes2, at::ArrayRef<double> params, int64_t reduction) {
  auto call = with_boxes<BoxCall>(boxes1, boxes2, params);
  TORCH_CHECK(boxes1.sizes() == boxes2.sizes(), "box engine: wanted as many boxes in both sets, got ", boxes1.sizes(), " and ",
              boxes2.sizes());
  call.reduction = static_cast<int>(reduction);
  return call;
}

BoxPairsCall describe(const Tensor& boxes1, const Tensor& boxes2, at::ArrayRef<double> params) {
  auto call = with_boxes<BoxPairsCall>(boxes1, boxes2, params);
  call.columns = boxes2.size(0);
  return call;
}

std::tuple<Tensor, Tensor> gradients(const Tensor& boxes1, const Tensor& boxes2, bool want1, bool want2) {
  const auto make = [](const Tensor& t, bool wanted) {
    const Tensor grad = at::empty(wanted ? t.sizes() : at::IntArrayRef{0}, t.options());
    advise_huge_pages(grad);
    return grad;
  };
  return {make(boxes1, want1), make(boxes2, want2)};
}

Tensor box_forward(
    const Tensor& boxes1, const Tensor& boxes2, c10::string_view functor, at::ArrayRef<double> params, int64_t reduction_code) {
  BoxCall call = describe(boxes1, boxes2, params, reduction_code);
  const int index = functor_index("box", kBoxLosses, functor);
  const Scalar scalar = scalar_of(boxes1);
  const auto reduction = static_cast<Reduction>(reduction_code);
  const bool each = reduction == Reduction::kNone;
  const Tensor loss = at::empty(each ? at::IntArrayRef{call.rows} : at::IntArrayRef{}, boxes1.options().dtype(accumulate_type(boxes1)));
  call.loss = loss.data_ptr();
  c10::SmallVector<double, 8> sums((call.rows + kRows - 1) / kRows);
  each_piece(call.rows, [&](int64_t begin, int64_t end) {
    kernels->box_forward(call, scalar, index, begin, end, &sums[begin / kRows]);
  }, kRows);
  if (each) return loss;
  Compensated sum;
  for (const double part : sums) sum.add(part);
  const double value = sum.value() / (reduction == Reduction::kMean ? static_cast<double>(std::max<int64_t>(call.rows, 1)) : 1.0);
  if (accumulate_type(boxes1) == at::kDouble) *loss.mutable_data_ptr<double>() = value;
  else *loss.mutable_data_ptr<float>() = static_cast<float>(value);
  return loss;
}

std::tuple<Tensor, Tensor> box_backward(
    const Tensor& grad_loss, const Tensor& boxes1, const Tensor& boxes2, c10::string_view functor, at::ArrayRef<double> params,
    int64_t reduction, bool want1, bool want2) {
  BoxCall call = describe(boxes1, boxes2, params, reduction);
  const int index = functor_index("box", kBoxLosses, functor);
  const Scalar scalar = scalar_of(boxes1);
  const bool each = static_cast<Reduction>(reduction) == Reduction::kNone;
  TORCH_CHECK(grad_loss.numel() == (each ? call.rows : 1), "box engine: an upstream gradient must have ", each ? call.rows : 1,
              " elements, got ", grad_loss.sizes());
  const auto [grad1, grad2] = gradients(boxes1, boxes2, want1, want2);
  if (call.rows == 0) return {grad1, grad2};
  // What a sum of losses sends back is one number seen through a stride of 0.
  const bool shared = !each || grad_loss.stride(0) == 0;
  const Tensor upstream = shared ? grad_loss.to(accumulate_type(boxes1)) : grad_loss.to(accumulate_type(boxes1)).contiguous();
  call.grad_loss = upstream.const_data_ptr();
  call.grad_stride = shared ? 0 : 1;
  call.grad_first = want1 ? grad1.data_ptr() : nullptr;
  call.grad_second = want2 ? grad2.data_ptr() : nullptr;
  each_piece(call.rows, [&](int64_t begin, int64_t end) { kernels->box_backward(call, scalar, index, begin, end); }, kRows);
  return {grad1, grad2};
}

// How many of `items` with `pairs` each are worth a thread; a multiple of the lanes of a vector.
int64_t grain(int64_t pairs) { return std::max<int64_t>(64, kPairs / std::max<int64_t>(pairs, 1) / 64 * 64); }

Tensor box_pairs_forward(const Tensor& boxes1, const Tensor& boxes2, c10::string_view functor, at::ArrayRef<double> params) {
  BoxPairsCall call = describe(boxes1, boxes2, params);
  const int index = functor_index("box", kBoxLosses, functor);
  const Scalar scalar = scalar_of(boxes1);
  const Tensor score = at::empty({call.rows, call.columns}, boxes1.options().dtype(accumulate_type(boxes1)));
  advise_huge_pages(score);
  call.score = score.data_ptr();
  if (call.columns == 0) return score;
  each_piece(call.rows, [&](int64_t begin, int64_t end) {
    kernels->box_pairs_forward(call, scalar, index, begin, end);
  }, grain(call.columns));
  return score;
}

std::tuple<Tensor, Tensor> box_pairs_backward(
    const Tensor& grad_score, const Tensor& boxes1, const Tensor& boxes2, c10::string_view functor, at::ArrayRef<double> params, bool want1,
    bool want2) {
  BoxPairsCall call = describe(boxes1, boxes2, params);
  const int index = functor_index("box", kBoxLosses, functor);
  const Scalar scalar = scalar_of(boxes1);
  TORCH_CHECK(grad_score.dim() == 2 && grad_score.size(0) == call.rows && grad_score.size(1) == call.columns,
              "box engine: an upstream gradient must be (", call.rows, ", ", call.columns, "), got ", grad_score.sizes());
  const Tensor upstream = grad_score.to(accumulate_type(boxes1)).contiguous();
  const auto [grad1, grad2] = gradients(boxes1, boxes2, want1, want2);
  call.grad_score = upstream.const_data_ptr();
  if (want1) {
    call.grad_first = grad1.data_ptr();
    each_piece(call.rows, [&](int64_t begin, int64_t end) {
      kernels->box_pairs_backward_first(call, scalar, index, begin, end);
    }, grain(call.columns));
  }
  if (want2) {
    call.grad_second = grad2.data_ptr();
    each_piece(call.columns, [&](int64_t begin, int64_t end) {
      kernels->box_pairs_backward_second(call, scalar, index, begin, end);
    }, grain(call.rows));
  }
  return {grad1, grad2};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("box_forward.cpu", fastloss::box_forward);
  m.impl("box_backward.cpu", fastloss::box_backward);
  m.impl("box_pairs_forward.cpu", fastloss::box_pairs_forward);
  m.impl("box_pairs_backward.cpu", fastloss::box_pairs_backward);
}
