// Sums over all triplets on the CPU: one source, compiled once for each instruction set.
//
// The few positives of a row sweep over its negatives in vectors; many are merged with the sorted negatives instead.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <cmath>
#include <vector>

namespace fastloss {
namespace {

constexpr int64_t kMany = 256;  // positives of a row that make sorting its negatives worth while

template <class T>
struct Triplets {
  using V = Vectorized<T>;

  const TripletsCall& c;
  const T *row_label, *column_label;
  std::vector<T> negative;  // the row's scores, infinite where the label is the row's
  std::vector<int64_t> positive;
  std::vector<std::pair<T, int64_t>> below, limits;
  std::vector<int64_t> beyond;

  explicit Triplets(const TripletsCall& call)
      : c(call), row_label(static_cast<const T*>(call.row_label)), column_label(static_cast<const T*>(call.column_label)),
        negative(call.columns) {}

  void row(int64_t i) {
    const T* near = static_cast<const T*>(c.near) + i * c.columns;
    T* grad = static_cast<T*>(c.grad) + i * c.columns;
    std::fill(grad, grad + c.columns, T(0));
    positive.clear();
    bool ordered = true;
    for (int64_t j = 0; j < c.columns; ++j) {
      const bool same = row_label[i] == column_label[j];
      negative[j] = same ? kInf<T> : near[j];
      ordered &= !std::isnan(near[j]);
      if (same && !(c.skips && j - i == c.skip)) positive.push_back(j);
    }
    c.totals[i] = 0;
    c.counts[i] = 0;
    if (positive.size() > kMany && ordered) merge(i, near, grad);
    else compare(i, near, grad);
  }

  void compare(int64_t i, const T* near, T* grad) {
    for (const int64_t p : positive) {
      const V limit(near[p] + static_cast<T>(c.margin));
      double total = 0;
      int64_t count = 0;
      V sum(T(0)), number(T(0));
      int64_t vectors = 0;
      const auto flush = [&] {
        total += static_cast<double>(horizontal_sum(sum));
        count += static_cast<int64_t>(horizontal_sum(number));
        sum = number = V(T(0));
      };
      each_vector<T>(c.columns, [&](int64_t j, int64_t n) {
        const V above = limit - load(negative.data() + j, n);
        auto none = above <= V(T(0));  // NaN goes on
        if (n < V::size()) none = none | (V::arange(T(0), T(1)) >= V(static_cast<T>(n)));
        const V one = select(none, V(T(0)), V(T(1)));
        sum = sum + select(none, V(T(0)), above);
        number = number + one;
        store(grad + j, load(grad + j, n) - one, n);
        if (++vectors % kFewVectors == 0) flush();
      });
      flush();
      grad[p] += static_cast<T>(count);
      c.totals[i] += total;
      c.counts[i] += count;
    }
  }

  void merge(int64_t i, const T* near, T* grad) {
    below.clear();
    limits.clear();
    for (int64_t j = 0; j < c.columns; ++j) {
      if (row_label[i] != column_label[j]) below.emplace_back(near[j], j);
    }
    for (const int64_t p : positive) limits.emplace_back(near[p] + static_cast<T>(c.margin), p);
    std::sort(below.begin(), below.end());
    std::sort(limits.begin(), limits.end());
    beyond.assign(below.size() + 1, 0);  // by rank, how many positives have so many negatives below their limit
    size_t rank = 0;
    double sum = 0;
    for (const auto& [limit, p] : limits) {
      for (; rank < below.size() && below[rank].first < limit; ++rank) sum += static_cast<double>(below[rank].first);
      ++beyond[rank];
      grad[p] += static_cast<T>(rank);
      if (rank) c.totals[i] += static_cast<double>(rank) * static_cast<double>(limit) - sum;
      c.counts[i] += static_cast<int64_t>(rank);
    }
    int64_t active = 0;
    for (size_t r = below.size(); r-- > 0;) {
      active += beyond[r + 1];
      grad[below[r].second] -= static_cast<T>(active);
    }
  }
};

}  // namespace

namespace kernel {

void triplets(const TripletsCall& call, Scalar scalar, int64_t begin, int64_t end) {
  const auto run = [&](auto zero) {
    Triplets<decltype(zero)> rows(call);
    for (int64_t i = begin; i < end; ++i) rows.row(i);
  };
  if (scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

}  // namespace kernel
}  // namespace fastloss
