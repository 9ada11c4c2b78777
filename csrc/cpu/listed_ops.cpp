// The ops on rows of the pair engine: shapes, allocation, threads and lists by owner around one instruction set's kernels.

#include "ops.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace fastloss {
namespace {

// run(begin, end) over rows of so many features, or over entries of a list.
template <class Run>
void each_range(int64_t count, int64_t features, const Run& run) {
  at::parallel_for(0, count, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, features)), run);
}

void check_rows(const Tensor& rows) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_contiguous() && (rows.scalar_type() == at::kFloat || rows.scalar_type() == at::kDouble),
              "pair engine: rows must be contiguous float32 or float64 (N, D), got ", rows.scalar_type(), rows.sizes());
}

void check_like(const char* name, const Tensor& t, const Tensor& rows, at::IntArrayRef sizes) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == rows.scalar_type() && t.is_contiguous(), "pair engine: ", name,
              " must be contiguous ", rows.scalar_type(), sizes, ", got ", t.scalar_type(), t.sizes());
}

// The mean of rows; one after the other, so that threads make no difference.
template <class T>
Tensor mean_row(const Tensor& rows) {
  const int64_t count = rows.size(0), features = rows.size(1);
  std::vector<double> sum(features, 0.0);
  const T* row = rows.const_data_ptr<T>();
  for (int64_t r = 0; r < count; ++r, row += features) {
    for (int64_t i = 0; i < features; ++i) sum[i] += static_cast<double>(row[i]);
  }
  const Tensor mean = at::empty({features}, rows.options());
  for (int64_t i = 0; i < features; ++i) mean.data_ptr<T>()[i] = static_cast<T>(count ? sum[i] / static_cast<double>(count) : 0.0);
  return mean;
}

// Rows as they are multiplied; if euclidean less a centre, their mean where none is given, and then with squared norms and the centre.
std::tuple<Tensor, Tensor, Tensor> pair_prepare(const Tensor& rows, bool unit, bool euclidean, const OptionalTensor& centre,
                                                double least) {
  check_rows(rows);
  const int64_t count = rows.size(0), features = rows.size(1);
  if (centre) check_like("centre", *centre, rows, {features});
  const Tensor to = at::empty_like(rows), squares = at::empty({euclidean ? count : 0}, rows.options());
  const size_t size = rows.element_size();
  const auto sweep = [&](const Tensor& source, bool norms, const Tensor& from) {
    each_range(count, features, [&](int64_t begin, int64_t end) {
      const auto at = [&](const Tensor& t, int64_t width) { return static_cast<char*>(t.data_ptr()) + begin * width * size; };
      kernels->pair_prepare(scalar_of(rows), at(source, features), end - begin, features, norms, from.defined() ? from.data_ptr() : nullptr,
                            least, at(to, features), from.defined() ? at(squares, 1) : nullptr);
    });
  };
  if (unit || !euclidean) sweep(rows, unit, Tensor());
  if (!euclidean) return {to, squares, at::empty({0}, rows.options())};
  const Tensor& source = unit ? to : rows;
  Tensor middle;
  if (centre) middle = *centre;
  else AT_DISPATCH_FLOATING_TYPES(rows.scalar_type(), "pair_prepare", [&] { middle = mean_row<scalar_t>(source); });
  sweep(source, false, middle);
  return {to, squares, centre ? middle.clone() : middle};
}

Tensor pair_prepare_backward(const Tensor& rows, const Tensor& prepared, const Tensor& by, const OptionalTensor& by_squares, bool unit,
                             double least) {
  check_rows(rows);
  const int64_t count = rows.size(0), features = rows.size(1);
  check_like("what rows were made", prepared, rows, rows.sizes());
  check_like("a gradient", by, rows, rows.sizes());
  if (by_squares) check_like("a gradient of norms", *by_squares, rows, {count});
  const Tensor to = at::empty_like(rows);
  const size_t size = rows.element_size();
  each_range(count, features, [&](int64_t begin, int64_t end) {
    const auto at = [&](const Tensor& t, int64_t width) { return static_cast<char*>(t.data_ptr()) + begin * width * size; };
    kernels->pair_prepare_backward(scalar_of(rows), at(rows, features), at(prepared, features), at(by, features),
                                   by_squares ? at(*by_squares, 1) : nullptr, end - begin, features, unit, least, at(to, features));
  });
  return to;
}

void check_list(const Tensor& list, int64_t entries, int64_t rows) {
  TORCH_CHECK(list.dim() == 1 && list.size(0) == entries && list.scalar_type() == at::kLong && list.is_contiguous(),
              "pair engine: indices must be contiguous int64 (", entries, "), got ", list.scalar_type(), list.sizes());
  const int64_t* index = list.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < entries; ++k) {
    TORCH_CHECK_INDEX(index[k] >= 0 && index[k] < rows, "pair engine: index ", index[k], " is out of bounds for ", rows, " rows");
  }
}

Tensor pair_listed(const Tensor& a, const Tensor& b, const Tensor& i, const Tensor& j) {
  check_rows(a);
  const int64_t entries = i.numel(), features = a.size(1);
  check_like("the other rows", b, a, {b.size(0), features});
  check_list(i, entries, a.size(0));
  check_list(j, entries, b.size(0));
  const Tensor to = at::empty({entries}, a.options());
  each_range(entries, features, [&](int64_t begin, int64_t end) {
    kernels->pair_listed(scalar_of(a), a.const_data_ptr(), b.const_data_ptr(), i.const_data_ptr<int64_t>(), j.const_data_ptr<int64_t>(),
                         begin, end, features, to.data_ptr());
  });
  return to;
}

// The gradient of `rows` rows that entries of a list own, each the sum of its entries in their order.
Tensor pair_listed_backward(const Tensor& weight, const Tensor& owner, int64_t rows, const Tensor& other, const Tensor& j) {
  check_rows(other);
  const int64_t entries = owner.numel(), features = other.size(1);
  check_like("weights", weight, other, {entries});
  check_list(owner, entries, rows);
  check_list(j, entries, other.size(0));
  const int64_t* of = owner.const_data_ptr<int64_t>();
  std::vector<int64_t> from(rows + 1, 0), order(entries);
  for (int64_t k = 0; k < entries; ++k) ++from[of[k] + 1];
  for (int64_t r = 0; r < rows; ++r) from[r + 1] += from[r];
  std::vector<int64_t> next(from.begin(), from.end() - 1);
  for (int64_t k = 0; k < entries; ++k) order[next[of[k]]++] = k;
  const Tensor to = at::zeros({rows, features}, other.options());
  const int64_t each = rows ? entries / rows + 1 : 1;
  each_range(rows, each * features, [&](int64_t begin, int64_t end) {
    kernels->pair_listed_backward(scalar_of(other), other.const_data_ptr(), j.const_data_ptr<int64_t>(), weight.const_data_ptr(),
                                  order.data(), from.data(), begin, end, features, to.data_ptr());
  });
  return to;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("pair_prepare.cpu", fastloss::pair_prepare);
  m.impl("pair_prepare_backward.cpu", fastloss::pair_prepare_backward);
  m.impl("pair_listed.cpu", fastloss::pair_listed);
  m.impl("pair_listed_backward.cpu", fastloss::pair_listed_backward);
}
