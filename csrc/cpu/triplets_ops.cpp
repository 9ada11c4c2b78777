// The op of sums over all triplets: shapes, allocation, threads and the sum over rows around one instruction set's kernel.

#include "ops.h"

#include <torch/library.h>

#include <numeric>

namespace fastloss {
namespace {

std::tuple<Tensor, Tensor, Tensor> triplet_sums(const Tensor& near, const Tensor& row_label, const Tensor& column_label,
                                                std::optional<int64_t> skip, double margin) {
  TORCH_CHECK(near.dim() == 2 && near.is_contiguous() && (near.scalar_type() == at::kFloat || near.scalar_type() == at::kDouble),
              "triplets: scores must be contiguous float32 or float64 (N, M), got ", near.scalar_type(), near.sizes());
  const auto labels = [&](const Tensor& t, int64_t size) {
    TORCH_CHECK(t.scalar_type() == near.scalar_type() && t.is_contiguous() && t.dim() == 1 && t.size(0) == size,
                "triplets: labels must be contiguous ", near.scalar_type(), " (", size, "), got ", t.scalar_type(), t.sizes());
    return t.const_data_ptr();
  };
  TripletsCall call{};
  call.near = near.const_data_ptr();
  call.rows = near.size(0);
  call.columns = near.size(1);
  call.row_label = labels(row_label, call.rows);
  call.column_label = labels(column_label, call.columns);
  call.skips = skip.has_value();
  call.skip = skip.value_or(0);
  call.margin = margin;
  std::vector<double> totals(call.rows);
  std::vector<int64_t> counts(call.rows);
  call.totals = totals.data();
  call.counts = counts.data();
  const Tensor grad = at::empty_like(near);
  call.grad = grad.data_ptr();
  at::parallel_for(0, call.rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, call.columns)),
                   [&](int64_t begin, int64_t end) { kernels->triplets(call, scalar_of(near), begin, end); });
  const Tensor total = at::empty({}, near.options().dtype(at::kDouble)), count = at::empty({}, near.options().dtype(at::kLong));
  total.fill_(sum_rows(call.rows, [&](int64_t i) { return totals[i]; }));
  count.fill_(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  return {total, count, grad};
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) { m.impl("triplet_sums.cpu", fastloss::triplet_sums); }
