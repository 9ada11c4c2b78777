// Python bindings of the CUDA kernels: addresses, sizes and a stream as integers, so that no torch header is needed and the
// extension builds wherever nvcc is. fastloss/cuda.py has the only callers and checks what it passes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#if defined(FASTLOSS_EMULATED)
#include "host_simt.h"
#endif

namespace {

using fastloss::BoxCall;
using fastloss::BoxLaunch;
using fastloss::BoxPairsCall;
using fastloss::DivergenceCall;
using fastloss::DivergenceLaunch;
using fastloss::ElementwiseCall;
using fastloss::ElementwiseLaunch;
using fastloss::OverlapCall;
using fastloss::OverlapLaunch;
using fastloss::PairCall;
using fastloss::PairLaunch;
using fastloss::RowCall;
using fastloss::RowLaunch;
using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

// outer, classes, inner, outer stride, class stride, target's two strides
using Shape = std::array<int64_t, 7>;
// label_smoothing, z_loss, softcap, logit_scale, stablemax, ignore_index, reduction
using Options = std::tuple<double, double, double, double, bool, int64_t, int>;

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
  std::tie(call.label_smoothing, call.z_loss, call.softcap, call.logit_scale, call.stablemax, call.ignore_index, call.reduction) = options;
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

// bytes of a label, 0 for numbers; whether it is signed; first_label, ignore_index
using Labels = std::tuple<int, bool, int64_t, std::optional<int64_t>>;

OverlapCall describe(const Sizes& sizes, const Given& input, const Given& target, const Labels& labels, const std::vector<double>& params) {
  auto call = with_params<OverlapCall>(params);
  std::tie(call.samples, call.classes, call.pixels) = std::tuple_cat(sizes);
  call.input = pointer(input.first);
  std::copy(input.second.begin(), input.second.end(), call.input_strides);
  call.target = pointer(target.first);
  std::copy(target.second.begin(), target.second.end(), call.target_strides);
  call.label_bytes = std::get<0>(labels);
  call.label_signed = std::get<1>(labels);
  call.first_label = std::get<2>(labels);
  call.has_ignore = std::get<3>(labels).has_value();
  call.ignore_index = std::get<3>(labels).value_or(0);
  return call;
}

void overlap_forward(const std::string& functor, int scalar, const Sizes& sizes, const Given& input, const Given& target,
                     const Labels& labels, const std::vector<double>& params, Address statistics, Address partial, Address stream) {
  const OverlapCall call = describe(sizes, input, target, labels, params);
  const OverlapLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar), pointer(statistics), pointer(partial),
                             pointer(stream)};
  const pybind11::gil_scoped_release release;
  fastloss::overlap_forward(call, launch);
}

void overlap_backward(const std::string& functor, int scalar, const Sizes& sizes, const Given& input, const Given& target,
                      const Labels& labels, const std::vector<double>& params, Address grad_statistics, const Given& grad_input,
                      const Given& grad_target, Address stream) {
  OverlapCall call = describe(sizes, input, target, labels, params);
  call.grad_statistics = pointer(grad_statistics);
  call.grad_input = pointer(grad_input.first);
  std::copy(grad_input.second.begin(), grad_input.second.end(), call.grad_strides);
  call.grad_target = pointer(grad_target.first);
  std::copy(grad_target.second.begin(), grad_target.second.end(), call.grad_target_strides);
  const OverlapLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar), nullptr, nullptr, pointer(stream)};
  const pybind11::gil_scoped_release release;
  fastloss::overlap_backward(call, launch);
}

// address, row stride and coordinate stride
using GivenBoxes = std::tuple<Address, int64_t, int64_t>;

fastloss::Boxes boxes(const GivenBoxes& given) { return {pointer(std::get<0>(given)), std::get<1>(given), std::get<2>(given)}; }

template <class Call>
Call describe(int64_t rows, const GivenBoxes& first, const GivenBoxes& second, const std::vector<double>& params) {
  auto call = with_params<Call>(params);
  call.rows = rows;
  call.first = boxes(first);
  call.second = boxes(second);
  return call;
}

void box_forward(const std::string& functor, int scalar, int64_t rows, const GivenBoxes& first, const GivenBoxes& second,
                 const std::vector<double>& params, int reduction, Address loss, Address partial, Address stream) {
  auto call = describe<BoxCall>(rows, first, second, params);
  call.reduction = reduction;
  call.loss = pointer(loss);
  const pybind11::gil_scoped_release release;
  fastloss::box_forward(call, {functor.c_str(), static_cast<fastloss::Scalar>(scalar), pointer(partial), pointer(stream)});
}

void box_backward(const std::string& functor, int scalar, int64_t rows, const GivenBoxes& first, const GivenBoxes& second,
                  const std::vector<double>& params, int reduction, Address grad_loss, int64_t grad_stride, Address grad_first,
                  Address grad_second, Address stream) {
  auto call = describe<BoxCall>(rows, first, second, params);
  call.reduction = reduction;
  call.grad_loss = pointer(grad_loss);
  call.grad_stride = grad_stride;
  call.grad_first = pointer(grad_first);
  call.grad_second = pointer(grad_second);
  const pybind11::gil_scoped_release release;
  fastloss::box_backward(call, {functor.c_str(), static_cast<fastloss::Scalar>(scalar), nullptr, pointer(stream)});
}

void box_pairs_forward(const std::string& functor, int scalar, int64_t rows, int64_t columns, const GivenBoxes& first,
                       const GivenBoxes& second, const std::vector<double>& params, Address score, Address stream) {
  auto call = describe<BoxPairsCall>(rows, first, second, params);
  call.columns = columns;
  call.score = pointer(score);
  const pybind11::gil_scoped_release release;
  fastloss::box_pairs_forward(call, {functor.c_str(), static_cast<fastloss::Scalar>(scalar), nullptr, pointer(stream)});
}

void box_pairs_backward(const std::string& functor, int scalar, int64_t rows, int64_t columns, const GivenBoxes& first,
                        const GivenBoxes& second, const std::vector<double>& params, Address grad_score, Address grad_first,
                        Address grad_second, Address stream) {
  auto call = describe<BoxPairsCall>(rows, first, second, params);
  call.columns = columns;
  call.grad_score = pointer(grad_score);
  call.grad_first = pointer(grad_first);
  call.grad_second = pointer(grad_second);
  const pybind11::gil_scoped_release release;
  fastloss::box_pairs_backward(call, {functor.c_str(), static_cast<fastloss::Scalar>(scalar), nullptr, pointer(stream)});
}

// rows, classes and the row strides of both sides
using SidesShape = std::array<int64_t, 4>;
// first side, second side, centre, weight, stats, divisor
using SidesAddresses = std::array<Address, 6>;
// first scale, second scale, factor, reduction, zero_empty
using SidesOptions = std::tuple<double, double, double, int, bool>;

DivergenceCall describe(const SidesShape& shape, const SidesAddresses& given, const std::vector<double>& params,
                        const SidesOptions& options) {
  auto call = with_params<DivergenceCall>(params);
  std::tie(call.rows, call.classes, call.first_stride, call.second_stride) = std::tuple_cat(shape);
  call.first = pointer(given[0]);
  call.second = pointer(given[1]);
  call.centre = pointer(given[2]);
  call.weight = pointer(given[3]);
  call.stats = pointer(given[4]);
  call.divisor = pointer(given[5]);
  std::tie(call.first_scale, call.second_scale, call.factor, call.reduction, call.zero_empty) = options;
  return call;
}

void divergence_forward(const std::string& functor, int scalar, const SidesShape& shape, const SidesAddresses& given,
                        const std::vector<double>& params, const SidesOptions& options, Address row_loss, Address loss, int loss_scalar,
                        Address partial, Address stream) {
  DivergenceCall call = describe(shape, given, params, options);
  call.row_loss = pointer(row_loss);
  const DivergenceLaunch launch{functor.c_str(), static_cast<fastloss::Scalar>(scalar), pointer(loss),
                                static_cast<fastloss::Scalar>(loss_scalar), pointer(partial), pointer(stream)};
  const pybind11::gil_scoped_release release;
  fastloss::divergence_forward(call, launch);
}

void divergence_backward(const std::string& functor, int scalar, const SidesShape& shape, const SidesAddresses& given,
                         const std::vector<double>& params, const SidesOptions& options, Address grad_loss, Address grad_first,
                         Address grad_second, Address stream) {
  DivergenceCall call = describe(shape, given, params, options);
  call.grad_loss = pointer(grad_loss);
  call.grad_first = pointer(grad_first);
  call.grad_second = pointer(grad_second);
  DivergenceLaunch launch{};
  launch.functor = functor.c_str();
  launch.scalar = static_cast<fastloss::Scalar>(scalar);
  launch.stream = pointer(stream);
  const pybind11::gil_scoped_release release;
  fastloss::divergence_backward(call, launch);
}

using OwnAndOther = std::array<Address, 2>;

// The pair engine's call for the rows of one set, to which terms are added.
struct PairPlan {
  PairCall call{};
  PairLaunch launch{};

  // sizes: own and other rows, features
  PairPlan(int scalar, const std::array<int64_t, 3>& sizes, const OwnAndOther& sets, const OwnAndOther& biases, const OwnAndOther& labels,
           Address codes, std::optional<int64_t> skip, double scale, int transform, double cap, Address stream) {
    launch.scalar = static_cast<fastloss::Scalar>(scalar);
    launch.own = pointer(sets[0]);
    launch.other = pointer(sets[1]);
    launch.stream = pointer(stream);
    std::tie(call.own, call.other, call.features) = std::tuple_cat(sizes);
    call.own_bias = pointer(biases[0]);
    call.other_bias = pointer(biases[1]);
    call.own_label = pointer(labels[0]);
    call.other_label = pointer(labels[1]);
    call.codes = static_cast<const uint8_t*>(pointer(codes));
    call.skips = skip.has_value();
    call.skip = skip.value_or(0);
    call.scale = scale;
    call.transform = static_cast<fastloss::PairTransform>(transform);
    call.cap = cap;
  }

  // term: functor, reduce, mask; own: whether it is of the own rows, and whether those are the functor's rows
  void add(const std::array<int, 3>& term, const std::array<bool, 2>& own, const std::array<double, fastloss::kPairConstants>& constants,
           const OwnAndOther& params, Address value, Address count, Address grad, Address param_grad) {
    if (call.terms == 2 * fastloss::kMaxPairTerms) throw_too_many();
    launch.count[call.terms] = pointer(count);
    launch.param_grad[call.terms] = pointer(param_grad);
    fastloss::PairTerm& to = call.term[call.terms++];
    to = {term[0], static_cast<fastloss::PairReduce>(term[1]), static_cast<fastloss::PairMask>(term[2]), own[0], own[1], {},
          pointer(params[0]), pointer(params[1]), pointer(value), pointer(grad)};
    std::copy(constants.begin(), constants.end(), to.constants);
  }

  void forward() const {
    if (call.terms > fastloss::kMaxPairTerms) throw_too_many();
    fastloss::pair_forward(call, launch);
  }
  void backward(Address grad, Address sums, Address bias_grad) const {
    PairLaunch with = launch;
    with.grad = pointer(grad);
    with.sums = pointer(sums);
    with.bias_grad = pointer(bias_grad);
    fastloss::pair_backward(call, with);
  }

  [[noreturn]] static void throw_too_many() {
    throw std::invalid_argument("fastloss: a call of the pair engine has at most " + std::to_string(fastloss::kMaxPairTerms) + " terms");
  }
};

using fastloss::SortCall;
using fastloss::SortLaunch;

// The sort engine's call for all of its steps: sizes and strides in the order of SortCall, addresses, options.
struct SortPlan {
  SortCall call{};
  std::string errors;
  fastloss::Scalar scalar;
  void* stream;

  // sizes: images, channels, inner, image stride, channel stride, groups, rows, size; labels: address, int64, ignores, ignored
  SortPlan(const std::string& errors, int scalar, const std::array<int64_t, 8>& sizes, Address input,
           const std::tuple<Address, bool, bool, int64_t>& labels, int64_t lone, Address class_of_row, Address row_of_channel,
           Address stats, Address stream)
      : errors(errors), scalar(static_cast<fastloss::Scalar>(scalar)), stream(pointer(stream)) {
    call.input = pointer(input);
    std::tie(call.images, call.channels, call.inner, call.image_stride, call.channel_stride, call.groups, call.rows, call.size) =
        std::tuple_cat(sizes);
    call.labels = {pointer(std::get<0>(labels)), std::get<1>(labels), std::get<2>(labels), std::get<3>(labels)};
    call.lone = lone;
    call.class_of_row = static_cast<const int64_t*>(pointer(class_of_row));
    call.row_of_channel = static_cast<const int64_t*>(pointer(row_of_channel));
    call.stats = pointer(stats);
  }
  SortLaunch launch() const { return {errors.c_str(), scalar, stream}; }

  void statistics() const { fastloss::sort_statistics(call, launch()); }
  void keys(int64_t first, int64_t count, Address keys) const { fastloss::sort_keys(call, launch(), first, count, pointer(keys)); }
  void count(int64_t first, int64_t count, Address order, Address counts) const {
    fastloss::sort_count(call, launch(), first, count, static_cast<const int64_t*>(pointer(order)), static_cast<int64_t*>(pointer(counts)));
  }
  void weigh(int64_t first, int64_t count, Address keys, Address order, Address before, Address total, Address partial,
             Address slopes) const {
    const auto integers = [](Address address) { return static_cast<const int64_t*>(pointer(address)); };
    fastloss::sort_weigh(call, launch(), first, count, {pointer(keys), integers(order), integers(before), integers(total)},
                         pointer(partial), pointer(slopes));
  }
  void backward(Address slopes, Address shares, Address grad_loss, Address grad) const {
    SortCall with = call;
    with.slopes = pointer(slopes);
    with.shares = pointer(shares);
    with.grad_loss = pointer(grad_loss);
    with.grad = pointer(grad);
    fastloss::sort_backward(with, launch());
  }
};

}  // namespace

PYBIND11_MODULE(FASTLOSS_MODULE, module) {
  module.attr("MAX_BLOCKS") = fastloss::max_blocks();
  module.def("row_forward", row_forward);
  module.def("row_backward", row_backward);
  module.def("elementwise_forward", elementwise_forward);
  module.def("elementwise_backward", elementwise_backward);
  module.def("overlap_scratch", [](int scalar, const Sizes& sizes) {
    return fastloss::overlap_scratch(static_cast<fastloss::Scalar>(scalar), sizes[0], sizes[1], sizes[2]);
  });
  module.def("overlap_forward", overlap_forward);
  module.def("overlap_backward", overlap_backward);
  module.def("box_forward", box_forward);
  module.def("box_backward", box_backward);
  module.def("box_pairs_forward", box_pairs_forward);
  module.def("box_pairs_backward", box_pairs_backward);
  module.def("divergence_forward", divergence_forward);
  module.def("divergence_backward", divergence_backward);
  module.attr("SORT_TILE") = fastloss::sort_tile();
  const pybind11::call_guard<pybind11::gil_scoped_release> released;
  pybind11::class_<PairPlan>(module, "PairPlan")
      .def(pybind11::init<int, const std::array<int64_t, 3>&, const OwnAndOther&, const OwnAndOther&, const OwnAndOther&, Address,
                          std::optional<int64_t>, double, int, double, Address>())
      .def("add", &PairPlan::add)
      .def("forward", &PairPlan::forward, released)
      .def("backward", &PairPlan::backward, released);
  pybind11::class_<SortPlan>(module, "SortPlan")
      .def(pybind11::init<const std::string&, int, const std::array<int64_t, 8>&, Address, const std::tuple<Address, bool, bool, int64_t>&,
                          int64_t, Address, Address, Address, Address>())
      .def("statistics", &SortPlan::statistics, released)
      .def("keys", &SortPlan::keys, released)
      .def("count", &SortPlan::count, released)
      .def("weigh", &SortPlan::weigh, released)
      .def("backward", &SortPlan::backward, released);
#if defined(FASTLOSS_EMULATED)
  module.def("set_order", [](uint64_t seed) { fastloss::simt::order_seed = seed; },
             "Seed the order in which the threads of a block run between two barriers; 0: their natural order.");
#endif
}
