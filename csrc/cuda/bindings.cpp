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

using fastloss::ElementwiseCall;
using fastloss::ElementwiseLaunch;
using fastloss::RowCall;
using fastloss::RowLaunch;
using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

// outer, classes, inner, outer stride, class stride, target's two strides
using Shape = std::array<int64_t, 7>;
// label_smoothing, z_loss, softcap, logit_scale, ignore_index, reduction
using Options = std::tuple<double, double, double, double, int64_t, int>;

template <class Call>
Call with_params(const std::vector<double>& params) {
  if (params.size() > fastloss::kMaxParams) throw std::invalid_argument("fastloss: too many parameters");
  Call call{};
  std::copy(params.begin(), params.end(), call.params);
  return call;
}

RowCall describe(const Shape& shape, const std::vector<double>& params, const Options& options, Address input, Address target,
                 Address weight) {
  auto call = with_params<RowCall>(params);
  call.input = pointer(input);
  call.target = pointer(target);
  call.weight = pointer(weight);
  std::tie(call.outer, call.classes, call.inner, call.outer_stride, call.class_stride, call.target_outer_stride,
           call.target_class_stride) = std::tuple_cat(shape);
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

using Sizes = std::array<int64_t, fastloss::kMaxDims>;
// address and strides
using Given = std::pair<Address, Sizes>;

fastloss::Operand operand(const Given& given) {
  fastloss::Operand operand{pointer(given.first), {}};
  std::copy(given.second.begin(), given.second.end(), operand.strides);
  return operand;
}

// operands: input, target, third, weight
ElementwiseCall describe(const Sizes& sizes, const std::array<Given, 4>& operands, const std::vector<double>& params, int reduction,
                         Address divisor) {
  auto call = with_params<ElementwiseCall>(params);
  std::copy(sizes.begin(), sizes.end(), call.sizes);
  call.input = operand(operands[0]);
  call.target = operand(operands[1]);
  call.third = operand(operands[2]);
  call.weight = operand(operands[3]);
  call.reduction = reduction;
  call.divisor = pointer(divisor);
  return call;
}

void elementwise_forward(const std::string& functor, int scalar, const Sizes& sizes, const std::array<Given, 4>& operands,
                         const std::vector<double>& params, int reduction, int64_t count, Address divisor, Address loss, Address partial,
                         Address stream) {
  ElementwiseCall call = describe(sizes, operands, params, reduction, divisor);
  const bool each = reduction == static_cast<int>(fastloss::Reduction::kNone);
  if (each) call.loss.data = pointer(loss);
  const ElementwiseLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar), each ? nullptr : pointer(loss),
                                 pointer(partial), pointer(stream), count};
  const pybind11::gil_scoped_release release;
  fastloss::elementwise_forward(call, launch);
}

// grad_loss: of each element; without data, grad_scalar is that of the reduced loss. grads: to input, target and third
void elementwise_backward(const std::string& functor, int scalar, const Sizes& sizes, const std::array<Given, 4>& operands,
                          const std::vector<double>& params, int reduction, Address divisor, const Given& grad_loss, Address grad_scalar,
                          const std::array<Address, 3>& grads, Address stream) {
  ElementwiseCall call = describe(sizes, operands, params, reduction, divisor);
  call.grad_loss = operand(grad_loss);
  call.grad_scalar = pointer(grad_scalar);
  call.grad_input.data = pointer(grads[0]);
  call.grad_target.data = pointer(grads[1]);
  call.grad_third.data = pointer(grads[2]);
  const ElementwiseLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar), nullptr, nullptr, pointer(stream), 0};
  const pybind11::gil_scoped_release release;
  fastloss::elementwise_backward(call, launch);
}

}  // namespace

PYBIND11_MODULE(FASTLOSS_MODULE, module) {
  module.attr("MAX_BLOCKS") = fastloss::max_blocks();
  module.def("row_forward", row_forward);
  module.def("row_backward", row_backward);
  module.def("elementwise_forward", elementwise_forward);
  module.def("elementwise_backward", elementwise_backward);
#if defined(FASTLOSS_EMULATED)
  module.def("set_order", [](uint64_t seed) { fastloss::simt::order_seed = seed; },
             "Seed the order in which the threads of a block run between two barriers; 0: their natural order.");
#endif
}
