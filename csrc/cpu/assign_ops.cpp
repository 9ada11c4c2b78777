// The op of the assignment of anchors to objects: shapes, allocation and threads around one instruction set's kernel.

#include "ops.h"

#include <torch/library.h>

namespace fastloss {
namespace {

std::tuple<Tensor, Tensor> assign(
    const Tensor& scores, const Tensor& boxes, const Tensor& anchors, const Tensor& labels, const Tensor& objects, const Tensor& valid,
    bool additive, bool logits, int64_t topk, double alpha, double beta) {
  const auto wanted = [](const Tensor& t, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
    TORCH_CHECK(t.scalar_type() == dtype && t.sizes() == shape && t.is_contiguous(), "assign: ", name, " must be contiguous ", dtype, shape,
                ", got ", t.scalar_type(), t.sizes());
  };
  TORCH_CHECK(scores.dim() == 3 && objects.dim() == 3 && topk > 0, "assign: wanted scores (B, A, C), objects (B, M, 4) and topk > 0, got ",
              scores.sizes(), ", ", objects.sizes(), " and ", topk);
  const at::ScalarType acc = accumulate_type(scores);
  AssignCall call{};
  call.images = scores.size(0);
  call.anchors = scores.size(1);
  call.objects = objects.size(1);
  wanted(boxes, "boxes", acc, {call.images, 4, call.anchors});
  wanted(anchors, "anchors", acc, {2, call.anchors});
  wanted(labels, "labels", at::kLong, {call.images, call.objects});
  wanted(objects, "objects", acc, {call.images, call.objects, 4});
  wanted(valid, "valid", at::kBool, {call.images, call.objects});
  call.labels = labels.const_data_ptr<int64_t>();
  call.valid = valid.const_data_ptr<bool>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    TORCH_CHECK_INDEX(!call.valid[i] || (call.labels[i] >= 0 && call.labels[i] < scores.size(2)), "assign: label ", call.labels[i],
                      " is out of bounds: wanted 0 <= label < ", scores.size(2));
  }
  call.scores = scores.const_data_ptr();
  call.image_stride = scores.stride(0);
  call.anchor_stride = scores.stride(1);
  call.class_stride = scores.stride(2);
  call.boxes = boxes.const_data_ptr();
  call.points = anchors.const_data_ptr();
  call.truth = objects.const_data_ptr();
  call.additive = additive;
  call.logits = logits;
  call.topk = topk;
  call.alpha = alpha;
  call.beta = beta;
  const Tensor index = at::empty({call.images, call.anchors}, labels.options());
  const Tensor weight = at::empty({call.images, call.anchors}, boxes.options());
  call.index = index.mutable_data_ptr<int64_t>();
  call.weight = weight.data_ptr();
  at::parallel_for(0, call.images, 1, [&](int64_t begin, int64_t end) { kernels->assign(call, scalar_of(scores), begin, end); });
  return {index, weight};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) { m.impl("assign.cpu", fastloss::assign); }
