// Python bindings of the CUDA kernels: addresses, sizes and a stream as integers, so that no torch header is needed and the
// extension builds wherever nvcc is. fastloss/cuda.py has the only callers and checks what it passes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#if defined(FASTLOSS_EMULATED)
#include "host_simt.h"
#endif

namespace {

using fastloss::RowCall;
using fastloss::RowLaunch;
using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

// outer, classes, inner, outer stride, class stride, target's two strides
using Shape = std::array<int64_t, 7>;
// label_smoothing, z_loss, softcap, logit_scale, ignore_index, reduction
using Options = std::tuple<double, double, double, double, int64_t, int>;

RowCall describe(const Shape& shape, const std::vector<double>& params, const Options& options, Address input, Address target,
                 Address weight) {
  if (params.size() > fastloss::kMaxParams) throw std::invalid_argument("fastloss: too many parameters");
  RowCall call{};
  call.input = pointer(input);
  call.target = pointer(target);
  call.weight = pointer(weight);
  std::tie(call.outer, call.classes, call.inner, call.outer_stride, call.class_stride, call.target_outer_stride,
           call.target_class_stride) = std::tuple_cat(shape);
  std::copy(params.begin(), params.end(), call.params);
  std::tie(call.label_smoothing, call.z_loss, call.softcap, call.logit_scale, call.ignore_index, call.reduction) = options;
  return call;
}

void row_forward(const std::string& functor, int scalar, bool soft, const Shape& shape, const std::vector<double>& params,
                 const Options& options, bool zero_empty, Address input, Address target, Address weight, Address stats,
                 int64_t stats_stride_bytes, Address divisor, Address entropy, Address accuracy, Address row_loss, Address loss,
                 int loss_scalar, Address partial, Address stream) {
  RowCall call = describe(shape, params, options, input, target, weight);
  call.zero_empty = zero_empty;
  call.max = pointer(stats);
  call.log_sum = pointer(stats + stats_stride_bytes);
  call.slope = pointer(stats + 2 * stats_stride_bytes);
  call.divisor = pointer(divisor);
  call.entropy = pointer(entropy);
  call.accuracy = pointer(accuracy);
  call.row_loss = pointer(row_loss);
  const RowLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar),      soft,           pointer(loss),
                         static_cast<fastloss::Scalar>(loss_scalar), pointer(partial), pointer(stream)};
  const pybind11::gil_scoped_release release;
  fastloss::row_forward(call, launch);
}

void row_backward(const std::string& functor, int scalar, bool soft, const Shape& shape, const std::vector<double>& params,
                  const Options& options, Address input, Address target, Address weight, Address stats, int64_t stats_stride_bytes,
                  Address divisor, Address entropy, Address grad_loss, Address grad_lse, Address grad_entropy, Address grad,
                  int64_t grad_outer_stride, int64_t grad_class_stride, Address stream) {
  RowCall call = describe(shape, params, options, input, target, weight);
  call.max = pointer(stats);
  call.log_sum = pointer(stats + stats_stride_bytes);
  call.slope = pointer(stats + 2 * stats_stride_bytes);
  call.divisor = pointer(divisor);
  call.entropy = pointer(entropy);
  call.grad_loss = pointer(grad_loss);
  call.grad_lse = pointer(grad_lse);
  call.grad_entropy = pointer(grad_entropy);
  call.grad = pointer(grad);
  call.grad_outer_stride = grad_outer_stride;
  call.grad_class_stride = grad_class_stride;
  RowLaunch launch{};
  launch.functor = functor.c_str();
  launch.scalar = static_cast<fastloss::Scalar>(scalar);
  launch.soft = soft;
  launch.stream = pointer(stream);
  const pybind11::gil_scoped_release release;
  fastloss::row_backward(call, launch);
}

}  // namespace

PYBIND11_MODULE(FASTLOSS_MODULE, module) {
  module.attr("MAX_BLOCKS") = fastloss::max_blocks();
  module.def("row_forward", row_forward);
  module.def("row_backward", row_backward);
#if defined(FASTLOSS_EMULATED)
  module.def("set_order", [](uint64_t seed) { fastloss::simt::order_seed = seed; },
             "Seed the order in which the threads of a block run between two barriers; 0: their natural order.");
#endif
}
