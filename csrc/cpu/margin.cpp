// The margin engine on the CPU: one source, compiled once for each instruction set.
//
// The scores of a row's other classes are brought together once; each label then sweeps over them in vectors.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <vector>

namespace fastloss {
namespace {

constexpr int64_t kBlock = 1024;  // terms that are added in float before they are added in double
constexpr int64_t kPad = 64;      // so that the last vector of a row can be loaded whole

template <class T, bool kSquared>
struct Margin {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  const MarginCall& c;
  std::vector<A> others, slopes, gradient;
  std::vector<char> listed;
  const T* x = nullptr;
  const int64_t* label = nullptr;
  int64_t labels = 0, count = 0;

  explicit Margin(const MarginCall& call) : c(call), others(call.classes + kPad), listed(call.classes) {}

  void take(int64_t row) {
    x = static_cast<const T*>(c.input) + row * c.row_stride;
    label = c.target + row * c.labels;
    labels = 0;
    while (labels < c.labels && label[labels] >= 0) ++labels;
    if (labels == 1 && c.class_stride == 1) {
      widen(x, others.data(), *label);
      widen(x + *label + 1, others.data() + *label, c.classes - *label - 1);
      count = c.classes - 1;
      return;
    }
    for (int64_t k = 0; k < labels; ++k) listed[label[k]] = 1;
    count = 0;
    for (int64_t j = 0; j < c.classes; ++j) {
      others[count] = static_cast<A>(x[j * c.class_stride]);
      count += !listed[j];
    }
  }

  // What is added to a score of another class to get its term.
  A shift(int64_t k) const { return static_cast<A>(c.margin) - static_cast<A>(x[label[k] * c.class_stride]); }

  A factor() const {
    const A share = A(1) / static_cast<A>(c.classes);
    return c.weight && labels ? share * static_cast<const A*>(c.weight)[*label] : share;
  }

  // The sum of term(i, number) over the vectors of the other classes.
  template <class Term>
  double sum(const Term& term) const {
    double total = 0;
    for (int64_t first = 0; first < count; first += kBlock) {
      V block(0);
      each_vector<A>(std::min(kBlock, count - first), [&](int64_t i, int64_t n) {
        const V value = term(first + i);
        block = block + (n == V::size() ? value : V::set(V(0), value, n));
      });
      total += horizontal_sum(block);
    }
    return total;
  }

  void unlist() {
    for (int64_t k = 0; k < labels; ++k) listed[label[k]] = 0;
  }

  void forward(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      take(row);
      double total = 0;
      for (int64_t k = 0; k < labels; ++k) {
        const V by(shift(k));
        total += sum([&](int64_t i) {
          const V missing = at_least(V(0), by + V::loadu(others.data() + i));
          return kSquared ? missing * missing : missing;
        });
      }
      unlist();
      static_cast<A*>(c.row_loss)[row] = static_cast<A>(total * factor());
    }
  }

  void backward(int64_t begin, int64_t end) {
    slopes.resize(c.classes + kPad);
    gradient.resize(c.classes + kPad);
    for (int64_t row = begin; row < end; ++row) {
      take(row);
      const auto* upstream = static_cast<const A*>(c.grad_loss);
      const A scale = factor() * (c.per_row ? upstream[row] : *upstream / static_cast<A>(c.divisor));
      std::fill(slopes.begin(), slopes.end(), A(0));
      std::fill(gradient.begin(), gradient.end(), A(0));
      for (int64_t k = 0; k < labels; ++k) {
        const V by(shift(k));
        const double total = sum([&](int64_t i) {
          const V lacking = by + V::loadu(others.data() + i);
          const V slope = kSquared ? V(2) * at_least(V(0), lacking) : select(less(V(0), lacking), V(1), V(0));
          (V::loadu(slopes.data() + i) + slope).store(slopes.data() + i);
          return slope;
        });
        gradient[label[k]] -= static_cast<A>(total);
      }
      spread();
      unlist();
      T* const to = static_cast<T*>(c.grad) + row * c.classes;
      each_vector<T>(c.classes, [&](int64_t i, int64_t n) {
        Parted<T> parts;
        for (int k = 0; k < kParts<T>; ++k) parts[k] = V(scale) * V::loadu(gradient.data() + i + k * V::size());
        store_parts(to + i, parts, n);
      });
    }
  }

  // The slopes of the other classes to their places.
  void spread() {
    if (labels == 1 && c.class_stride == 1) {
      std::copy(slopes.begin(), slopes.begin() + *label, gradient.begin());
      std::copy(slopes.begin() + *label, slopes.begin() + count, gradient.begin() + *label + 1);
      return;
    }
    int64_t from = 0;
    for (int64_t j = 0; j < c.classes; ++j) {
      if (!listed[j]) gradient[j] = slopes[from++];
    }
  }
};

template <bool kForward, class T>
void run(const MarginCall& call, int64_t begin, int64_t end) {
  const auto sweep = [&](auto engine) {
    if constexpr (kForward) engine.forward(begin, end);
    else engine.backward(begin, end);
  };
  if (call.squared) sweep(Margin<T, true>(call));
  else sweep(Margin<T, false>(call));
}

template <bool kForward>
void run(const MarginCall& call, Scalar scalar, int64_t begin, int64_t end) {
  return with_type(scalar, [&](auto zero) { return run<kForward, decltype(zero)>(call, begin, end); });
}

}  // namespace

void kernel::margin_forward(const MarginCall& call, Scalar scalar, int64_t begin, int64_t end) { run<true>(call, scalar, begin, end); }

void kernel::margin_backward(const MarginCall& call, Scalar scalar, int64_t begin, int64_t end) { run<false>(call, scalar, begin, end); }

}  // namespace fastloss
