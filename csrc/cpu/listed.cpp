// Rows of the pair engine one by one: made ready to be multiplied, and dot products of listed ones.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <cmath>

namespace fastloss {
namespace {

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  using V = Vectorized<T>;
  double total = 0;
  V sum(T(0));
  int64_t vectors = 0;
  each_vector<T>(n, [&](int64_t i, int64_t count) {
    sum = sum + load(x + i, count) * load(y + i, count);  // what is behind the end is loaded as 0
    if (++vectors % kFewVectors) return;
    total += static_cast<double>(horizontal_sum(sum));
    sum = V(T(0));
  });
  return total + static_cast<double>(horizontal_sum(sum));
}

inline double held(double norm, double least) { return norm < least ? least : norm; }  // NaN stays

template <class T>
void prepare(const T* rows, int64_t count, int64_t features, bool unit, const T* centre, double least, T* to, T* squares) {
  using V = Vectorized<T>;
  for (int64_t r = 0; r < count; ++r, rows += features, to += features) {
    const V size(unit ? static_cast<T>(held(std::sqrt(dot(rows, rows, features)), least)) : T(1));
    each_vector<T>(features, [&](int64_t i, int64_t n) {
      V x = load(rows + i, n) / size;
      if (centre) x = x - load(centre + i, n);
      store(to + i, x, n);
    });
    if (squares) squares[r] = static_cast<T>(dot(to, to, features));
  }
}

// Of u = x / |x| the gradient is (g - (g . u) u) / |x|, of a norm that is held g / least; of squares 2 u more.
template <class T>
void prepare_backward(const T* rows, const T* prepared, const T* by, const T* by_squares, int64_t count, int64_t features, bool unit,
                      double least, T* to) {
  using V = Vectorized<T>;
  for (int64_t r = 0; r < count; ++r, rows += features, prepared += features, by += features, to += features) {
    const V twice(by_squares ? 2 * by_squares[r] : T(0));
    each_vector<T>(features, [&](int64_t i, int64_t n) {
      const V g = load(by + i, n);
      store(to + i, by_squares ? g + twice * load(prepared + i, n) : g, n);
    });
    if (!unit) continue;
    const double norm = std::sqrt(dot(rows, rows, features));
    const double along = norm < least ? 0.0 : dot(to, rows, features) / norm / norm;
    const V part(static_cast<T>(along)), size(static_cast<T>(held(norm, least)));
    each_vector<T>(features, [&](int64_t i, int64_t n) { store(to + i, (load(to + i, n) - part * load(rows + i, n)) / size, n); });
  }
}

}  // namespace

namespace kernel {

void pair_prepare(Scalar scalar, const void* rows, int64_t count, int64_t features, bool unit, const void* centre, double least, void* to,
                  void* squares) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    prepare(static_cast<const T*>(rows), count, features, unit, static_cast<const T*>(centre), least, static_cast<T*>(to),
            static_cast<T*>(squares));
  };
  if (scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

void pair_prepare_backward(Scalar scalar, const void* rows, const void* prepared, const void* by, const void* by_squares, int64_t count,
                           int64_t features, bool unit, double least, void* to) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    prepare_backward(static_cast<const T*>(rows), static_cast<const T*>(prepared), static_cast<const T*>(by),
                     static_cast<const T*>(by_squares), count, features, unit, least, static_cast<T*>(to));
  };
  if (scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

void pair_listed(Scalar scalar, const void* a, const void* b, const int64_t* i, const int64_t* j, int64_t begin, int64_t end,
                 int64_t features, void* to) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    for (int64_t k = begin; k < end; ++k) {
      static_cast<T*>(to)[k] =
          static_cast<T>(dot(static_cast<const T*>(a) + i[k] * features, static_cast<const T*>(b) + j[k] * features, features));
    }
  };
  if (scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

void pair_listed_backward(Scalar scalar, const void* other, const int64_t* j, const void* weight, const int64_t* order,
                          const int64_t* from, int64_t begin, int64_t end, int64_t features, void* to) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    for (int64_t row = begin; row < end; ++row) {
      T* sum = static_cast<T*>(to) + row * features;
      for (int64_t k = from[row]; k < from[row + 1]; ++k) {
        const Vectorized<T> factor(static_cast<const T*>(weight)[order[k]]);
        const T* one = static_cast<const T*>(other) + j[order[k]] * features;
        each_vector<T>(features, [&](int64_t d, int64_t n) { store(sum + d, load(sum + d, n) + factor * load(one + d, n), n); });
      }
    }
  };
  if (scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

}  // namespace kernel
}  // namespace fastloss
