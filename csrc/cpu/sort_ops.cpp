// The `cpu` overloads of the sort engine's ops: counts of labels, rows side by side, the sort and the weights of the ranks.

#include "ops.h"
#include "radix.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace fastloss {
namespace {

#define FASTLOSS_NAME(stem, Functor) #stem,
constexpr const char* kErrors[] = {FASTLOSS_SORT(FASTLOSS_NAME)};
#undef FASTLOSS_NAME
#define FASTLOSS_NORMALISE(stem, Functor) Functor::kNormalise,
constexpr bool kNormalise[] = {FASTLOSS_SORT(FASTLOSS_NORMALISE)};
#undef FASTLOSS_NORMALISE

constexpr int64_t kRowsAThread = 4;  // with fewer, the threads work on one row together

struct Settings {
  c10::string_view errors;
  at::IntArrayRef classes;
  bool per_image, present;
  std::optional<int64_t> ignore_index;
};

// A call with the tables that it points to.
struct Described : SortCall {
  std::vector<int64_t> chosen, row_of;
};

void describe(Described& call, const Tensor& input, const Tensor& target, const Settings& s) {
  TORCH_CHECK(input.dim() == 3 && (input.size(2) <= 1 || input.stride(2) == 1),
              "sort engine: input must be (N, C, I) with unit stride over I, got shape ", input.sizes(), ", strides ", input.strides());
  TORCH_CHECK((target.scalar_type() == at::kLong || target.scalar_type() == at::kByte) && target.is_contiguous() &&
                  target.numel() == input.size(0) * input.size(2),
              "sort engine: target must be ", input.size(0) * input.size(2), " contiguous int64 or uint8, got ", target.scalar_type(),
              target.sizes());
  call.input = input.const_data_ptr();
  call.images = input.size(0);
  call.channels = input.size(1);
  call.inner = input.size(2);
  call.image_stride = input.stride(0);
  call.channel_stride = input.stride(1);
  call.labels = {target.const_data_ptr(), target.scalar_type() == at::kLong, s.ignore_index.has_value(), s.ignore_index.value_or(0)};
  call.groups = s.per_image ? call.images : 1;
  call.size = s.per_image ? call.inner : call.images * call.inner;
  call.rows = static_cast<int64_t>(s.classes.size());
  call.chosen = s.classes.vec();
  call.class_of_row = call.chosen.data();
  call.row_of.assign(call.channels, -1);
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t k = call.channels == 1 ? 0 : call.chosen[row];
    TORCH_CHECK_VALUE(k >= 0 && k < call.channels, "sort engine: class ", k, " is not one of ", call.channels);
    call.row_of[k] = row;
  }
  call.row_of_channel = call.row_of.data();
  call.lone = call.rows == 1 ? call.chosen[0] : 0;
}

// The foreground of every row; raises for a label that no class has. Of a single channel of probabilities any label is legal.
std::vector<int64_t> count_foreground(const Described& call, int errors) {
  std::vector<int64_t> totals(call.groups * call.rows);
  const bool binary = std::strcmp(kErrors[errors], "hinge") == 0;
  const bool checked = binary || call.channels > 1;
  const int64_t known = binary ? 2 : call.channels;
  const int64_t pieces = (call.size + kGrain - 1) / kGrain;
  std::atomic<bool> wrong = false;
  std::atomic<int64_t> unknown = 0;
  for (int64_t group = 0; group < call.groups; ++group) {
    std::vector<int64_t> counts(pieces * call.rows);
    each_piece(call.size, [&](int64_t begin, int64_t end) {
      int64_t* const found = counts.data() + begin / kGrain * call.rows;
      for (int64_t i = group * call.size + begin; i < group * call.size + end; ++i) {
        const int64_t label = call.labels.at(i);
        if (!call.labels.used(label)) continue;
        if (call.channels == 1) {
          found[0] += label == call.lone;
        } else if (static_cast<uint64_t>(label) < static_cast<uint64_t>(known) && call.row_of[label] >= 0) {
          ++found[call.row_of[label]];
        }
        if (static_cast<uint64_t>(label) >= static_cast<uint64_t>(known) && checked) {
          unknown = label;
          wrong = true;
        }
      }
    });
    for (int64_t p = 0; p < pieces; ++p) {
      for (int64_t row = 0; row < call.rows; ++row) totals[group * call.rows + row] += counts[p * call.rows + row];
    }
  }
  TORCH_CHECK_INDEX(!wrong, "Target ", unknown.load(), " is out of bounds: wanted 0 <= target < ", known, " or ignore_index=",
                    call.labels.ignores ? std::to_string(call.labels.ignored) : "None");
  return totals;
}

// One row after the other: errors, sort, weights. A is the type of sums.
template <class A, class Tag>
class Rows {
 public:
  using Key = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;

  Rows(const Described& call, Scalar scalar, int errors)
      : call_(call), scalar_(scalar), errors_(errors), sort_(call.size), seen_(sort_.pieces()), sums_(sort_.pieces()) {}

  // The sum of error * weight of a row that has `total` foreground elements.
  double operator()(int64_t group, int64_t row, int64_t total) {
    A* const slopes = call_.slopes ? static_cast<A*>(call_.slopes) + (group * call_.rows + row) * call_.size : nullptr;
    sort_.fill(call_.size, [&](int64_t begin, int64_t end, auto* entries) {
      if (slopes) std::fill(slopes + begin, slopes + end, A(0));
      return kernels->sort_keys(call_, scalar_, errors_, group, row, begin, end, sizeof(Tag) == 8, entries);
    });
    const auto* const entries = sort_.entries();
    sort_.each([&](int64_t p, int64_t begin, int64_t end) {
      seen_[p] = 0;
      for (int64_t i = begin; i < end; ++i) seen_[p] += entries[i].tag & 1;
    });
    int64_t before = 0;
    for (int64_t& seen : seen_) before += std::exchange(seen, before);
    sort_.each([&](int64_t p, int64_t begin, int64_t end) {
      int64_t seen = seen_[p];
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) {
        const Tag tag = entries[i].tag;
        A error;
        std::memcpy(&error, &entries[i].key, sizeof error);
        seen += tag & 1;
        const A weight = jaccard_weight<A>(tag & 1, total, seen, i + 1 - seen);
        sum += static_cast<double>(error) * static_cast<double>(weight);
        if (slopes) slopes[tag >> 1] = weight;
      }
      sums_[p] = sum;
    });
    Compensated sum;
    for (const double part : sums_) sum.add(part);
    return sum.value();
  }

 private:
  const Described& call_;
  Scalar scalar_;
  int errors_;
  RadixSort<Key, Tag> sort_;
  std::vector<int64_t> seen_;
  std::vector<double> sums_;
};

template <class A, class Tag>
void all_rows(const Described& call, Scalar scalar, int errors, bool present, const std::vector<int64_t>& totals, double* losses) {
  const int64_t rows = call.groups * call.rows;
  const auto run = [&](int64_t begin, int64_t end) {
    Rows<A, Tag> one(call, scalar, errors);
    for (int64_t r = begin; r < end; ++r) {
      if (present && totals[r] == 0) {
        losses[r] = 0;
        if (call.slopes) std::fill_n(static_cast<A*>(call.slopes) + r * call.size, call.size, A(0));
      } else {
        losses[r] = one(r / call.rows, r % call.rows, totals[r]);
      }
    }
  };
  // Threads take rows where these are many or too short to share.
  if (rows >= kRowsAThread * at::get_num_threads() || call.size <= kSortPiece) {
    at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / call.size), run);
  } else {
    run(0, rows);
  }
}

template <class A>
void forward(Described& call, Scalar scalar, int errors, const Settings& s, const Tensor& loss, const Tensor& shares) {
  const std::vector<int64_t> totals = count_foreground(call, errors);
  std::vector<double> losses(totals.size(), 0.0);
  if (call.size > 0) {
    if (kNormalise[errors]) {
      each_piece(call.images * call.inner, [&](int64_t begin, int64_t end) { kernels->sort_statistics(call, scalar, errors, begin, end); });
    }
    const bool wide = call.size >= int64_t(1) << 31;
    (wide ? all_rows<A, uint64_t> : all_rows<A, uint32_t>)(call, scalar, errors, s.present, totals, losses.data());
  }
  Compensated sum;
  for (int64_t group = 0; group < call.groups; ++group) {
    int64_t counted = 0;
    for (int64_t row = 0; row < call.rows; ++row) counted += !s.present || totals[group * call.rows + row] > 0;
    const double share = counted ? 1.0 / (static_cast<double>(counted) * static_cast<double>(call.groups)) : 0.0;
    for (int64_t r = group * call.rows; r < (group + 1) * call.rows; ++r) {
      const bool counts = !s.present || totals[r] > 0;
      shares.mutable_data_ptr<A>()[r] = counts ? static_cast<A>(share) : A(0);
      if (counts) sum.add(losses[r] * share);
    }
  }
  *loss.mutable_data_ptr<A>() = static_cast<A>(sum.value());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sort_forward(
    const Tensor& input, const Tensor& target, c10::string_view errors_name, at::IntArrayRef classes, bool per_image, bool present,
    std::optional<int64_t> ignore_index, bool want_slopes) {
  const Settings s{errors_name, classes, per_image, present, ignore_index};
  const int errors = functor_index("sort", kErrors, errors_name);
  const Scalar scalar = scalar_of(input);
  Described call{};
  describe(call, input, target, s);
  const auto options = input.options().dtype(accumulate_type(input));
  const Tensor loss = at::empty({}, options), shares = at::empty({call.groups, call.rows}, options);
  const Tensor stats = kNormalise[errors] ? at::empty({2, call.images * call.inner}, options) : at::empty({0, 0}, options);
  const Tensor slopes = want_slopes ? at::empty({call.groups, call.rows, call.size}, options) : at::empty({0, 0, 0}, options);
  advise_huge_pages(slopes);
  call.stats = stats.data_ptr();
  call.slopes = want_slopes ? slopes.data_ptr() : nullptr;
  if (accumulate_type(input) == at::kDouble) forward<double>(call, scalar, errors, s, loss, shares);
  else forward<float>(call, scalar, errors, s, loss, shares);
  return {loss, stats, slopes, shares};
}

Tensor sort_backward(
    const Tensor& grad_loss, const Tensor& input, const Tensor& target, const Tensor& stats, const Tensor& slopes, const Tensor& shares,
    c10::string_view errors_name, at::IntArrayRef classes, bool per_image, bool present, std::optional<int64_t> ignore_index) {
  const int errors = functor_index("sort", kErrors, errors_name);
  const Scalar scalar = scalar_of(input);
  Described call{};
  describe(call, input, target, {errors_name, classes, per_image, present, ignore_index});
  TORCH_CHECK(slopes.numel() == call.groups * call.rows * call.size && shares.numel() == call.groups * call.rows,
              "sort engine: slopes must be (", call.groups, ", ", call.rows, ", ", call.size, "), got ", slopes.sizes());
  const Tensor upstream = grad_loss.to(accumulate_type(input));
  const Tensor grad = at::empty(input.sizes(), input.options());
  advise_huge_pages(grad);
  call.stats = stats.data_ptr();
  call.slopes = slopes.data_ptr();
  call.shares = shares.const_data_ptr();
  call.grad_loss = upstream.const_data_ptr();
  call.grad = grad.data_ptr();
  each_piece(call.images * call.inner, [&](int64_t begin, int64_t end) { kernels->sort_backward(call, scalar, errors, begin, end); });
  return grad;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("sort_forward.cpu", fastloss::sort_forward);
  m.impl("sort_backward.cpu", fastloss::sort_backward);
}
