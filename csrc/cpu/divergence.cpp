// The divergence engine on the CPU: one source, compiled once for each instruction set.
//
// Logits are loaded in blocks that fit the first-level cache, converted to float (double for double) there and compared with the maximum
// of their side; what is summed of them goes to double at the end of a block.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

namespace fastloss {
namespace {

constexpr int64_t kBlock = 1024;  // elements of either side staged at a time: 8 kB of float together

// Sums that vectors are added to, few at a time in `part`.
template <class V>
struct Sums3 {
  V part[3] = {V(0), V(0), V(0)}, total[3] = {V(0), V(0), V(0)};
  int64_t terms = 0;

  void add(V a, V b, V c, int64_t count) {
    part[0] = part[0] + V::set(V(0), a, count);
    part[1] = part[1] + V::set(V(0), b, count);
    part[2] = part[2] + V::set(V(0), c, count);
    if (++terms % kFewVectors == 0) flush();
  }
  void flush() {
    for (int k = 0; k < 3; ++k) {
      total[k] = total[k] + part[k];
      part[k] = V(0);
    }
  }
  void leave(double (&to)[3]) {
    flush();
    for (int k = 0; k < 3; ++k) to[k] += horizontal_sum(total[k]);
  }
};

template <class T, class F>
struct Divergence {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  const DivergenceCall& c;
  const A* const centre;
  const A* const weight;
  A* const stats;
  const A first_scale, second_scale;

  explicit Divergence(const DivergenceCall& call)
      : c(call), centre(static_cast<const A*>(call.centre)), weight(static_cast<const A*>(call.weight)),
        stats(static_cast<A*>(call.stats)), first_scale(call.first_scale), second_scale(call.second_scale) {}

  const T* first_row(int64_t row) const { return static_cast<const T*>(c.first) + row * c.first_stride; }
  const T* second_row(int64_t row) const { return static_cast<const T*>(c.second) + row * c.second_stride; }
  A& stat(DivergenceStat which, int64_t row) const { return stats[which * c.rows + row]; }

  // `i` is the class of the first lane.
  V centred(V y, int64_t i, int64_t count) const { return centre ? y - load(centre + i, count) : y; }

  // n logits from class `begin` on as acc, and their maximum.
  template <bool kFirst>
  A stage(const T* row, int64_t begin, int64_t n, A* to) const {
    V best(-kInf<A>);
    each_part<T>(n, row + begin, [&](V z, int64_t i, int64_t count) {
      if constexpr (!kFirst) z = centred(z, begin + i, count);
      store(to + i, z, count);
      best = larger(best, V::set(V(-kInf<A>), z, count));
    });
    return horizontal(best, [](A a, A b) { return larger(a, b); });
  }

  // The maximum of one side so far, and what exponentials below the former one are multiplied by.
  struct Top {
    A max = -kInf<A>;
    double moved = 0, shrink = 1;
    void raise(A best, double scale) {
      moved = 0;
      shrink = 1;
      if (!(best > max)) return;
      if (max > -kInf<A>) {
        moved = (static_cast<double>(max) - best) * scale;
        shrink = exp(moved);
      }
      max = best;
    }
    // 0 while only -inf (or NaN) was seen, so that -inf adds 0 and NaN adds NaN
    V shift() const { return V(max > -kInf<A> ? max : A(0)); }
  };

  void forward_row(int64_t row) const {
    A& loss = static_cast<A*>(c.row_loss)[row];
    if (weight && weight[row] == 0) {
      for (int which = 0; which < kDivergenceStats; ++which) stat(static_cast<DivergenceStat>(which), row) = 0;
      loss = 0;
      return;
    }
    alignas(64) A x[kBlock], y[kBlock];
    const T *first = first_row(row), *second = second_row(row);
    Top top1, top2;
    double sums[3] = {};  // of exponentials of the first side, of the second, and of h under the second
    for (int64_t i = 0; i < c.classes; i += kBlock) {
      const int64_t n = std::min(kBlock, c.classes - i);
      top1.raise(stage<true>(first, i, n, x), c.first_scale);
      top2.raise(stage<false>(second, i, n, y), c.second_scale);
      if constexpr (F::kMean) {
        if (top1.moved != 0 || top2.moved != 0) {
          sums[2] = top2.shrink == 0 ? 0 : top2.shrink * (sums[2] + sums[1] * F::h(top1.moved, top2.moved));
        }
      }
      sums[0] *= top1.shrink;
      sums[1] *= top2.shrink;
      const V shift1 = top1.shift(), shift2 = top2.shift();
      Sums3<V> block;
      each_vector<A>(n, [&](int64_t j, int64_t count) {
        __builtin_prefetch(first + i + kBlock + j);  // memory that is read next: this loop is bound by arithmetic
        __builtin_prefetch(second + i + kBlock + j);
        const V v = (load(x + j, count) - shift1) * V(first_scale), u = (load(y + j, count) - shift2) * V(second_scale);
        const V under = exp(u);
        V mean(0);
        if constexpr (F::kMean) mean = select(equal(under, V(0)), V(0), under * F::h(v, u));
        block.add(exp(v), under, mean, count);
      });
      block.leave(sums);
    }
    const double log_sum1 = log(sums[0]), log_sum2 = log(sums[1]);
    stat(kFirstMax, row) = top1.max;
    stat(kFirstLogSum, row) = static_cast<A>(log_sum1);
    stat(kSecondMax, row) = top2.max;
    stat(kSecondLogSum, row) = static_cast<A>(log_sum2);
    double value, slope1 = -1, slope2;
    if constexpr (F::kMean) {
      slope2 = sums[2] / sums[1];
      value = slope2 + F::h(-log_sum1, -log_sum2);
    } else {
      const V max1(top1.max), max2(top2.max), from1(static_cast<A>(log_sum1)), from2(static_cast<A>(log_sum2));
      double terms[3] = {};
      for (int64_t i = 0; i < c.classes; i += kBlock) {
        const int64_t n = std::min(kBlock, c.classes - i);
        stage<true>(first, i, n, x);
        stage<false>(second, i, n, y);
        Sums3<V> block;
        each_vector<A>(n, [&](int64_t j, int64_t count) {
          const V l = (load(x + j, count) - max1) * V(first_scale) - from1, m = (load(y + j, count) - max2) * V(second_scale) - from2;
          const auto part = F::eval(l, m, exp(l), exp(m), c.params);
          block.add(part.value, part.first, part.second, count);
        });
        block.leave(terms);
      }
      value = terms[0];
      slope1 = terms[1];
      slope2 = terms[2];
    }
    stat(kFirstSlope, row) = static_cast<A>(slope1);
    stat(kSecondSlope, row) = static_cast<A>(slope2);
    loss = static_cast<A>(value * c.factor * (weight ? static_cast<double>(weight[row]) : 1.0));
  }

  void backward_row(int64_t row) const {
    T* const to_first = c.grad_first ? static_cast<T*>(c.grad_first) + row * c.classes : nullptr;
    T* const to_second = c.grad_second ? static_cast<T*>(c.grad_second) + row * c.classes : nullptr;
    if (weight && weight[row] == 0) {
      if (to_first) std::fill(to_first, to_first + c.classes, T(0));
      if (to_second) std::fill(to_second, to_second + c.classes, T(0));
      return;
    }
    const bool each = static_cast<Reduction>(c.reduction) == Reduction::kNone;
    double upstream = static_cast<const A*>(c.grad_loss)[each ? row : 0];
    if (static_cast<Reduction>(c.reduction) == Reduction::kMean) upstream /= *static_cast<const A*>(c.divisor);
    upstream *= c.factor * (weight ? static_cast<double>(weight[row]) : 1.0);
    const V back1(static_cast<A>(upstream * c.first_scale)), back2(static_cast<A>(upstream * c.second_scale));
    V kept[kDivergenceStats];
    for (int which = 0; which < kDivergenceStats; ++which) kept[which] = V(stat(static_cast<DivergenceStat>(which), row));
    const T *first = first_row(row), *second = second_row(row);
    constexpr int64_t width = V::size();
    each_vector<T>(c.classes, [&](int64_t i, int64_t count) {
      Parted<T> a = load_parts(first + i, count), b = load_parts(second + i, count);
      for (int k = 0; k < kParts<T>; ++k) {
        const int64_t left = std::clamp<int64_t>(count - k * width, 0, width);
        const auto grad = divergence_gradient<F>(
            (a[k] - kept[kFirstMax]) * V(first_scale), (centred(b[k], i + k * width, left) - kept[kSecondMax]) * V(second_scale),
            kept[kFirstLogSum], kept[kSecondLogSum], kept[kFirstSlope], kept[kSecondSlope], c.params);
        a[k] = back1 * grad.first;
        b[k] = back2 * grad.second;
      }
      if (to_first) store_parts(to_first + i, a, count);
      if (to_second) store_parts(to_second + i, b, count);
    });
  }
};

// run(zero of the type in memory, functor)
template <class Run>
void choose(Scalar scalar, int functor, const Run& run) {
  with_type(scalar, [&](auto zero) {
    int index = 0;
#define FASTLOSS_RUN(name, Functor) \
  if (functor == index++) return run(zero, Functor{});
    FASTLOSS_DIVERGENCE(FASTLOSS_RUN)
#undef FASTLOSS_RUN
  });
}

}  // namespace

void kernel::divergence_forward(const DivergenceCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) {
    const Divergence<decltype(zero), decltype(f)> rows(call);
    for (int64_t row = begin; row < end; ++row) rows.forward_row(row);
  });
}

void kernel::divergence_backward(const DivergenceCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) {
    const Divergence<decltype(zero), decltype(f)> rows(call);
    for (int64_t row = begin; row < end; ++row) rows.backward_row(row);
  });
}

}  // namespace fastloss
