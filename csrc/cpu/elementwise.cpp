// The element-wise engine on the CPU: one source, compiled once for each instruction set.
//
// A call is cut into pieces of neighbouring elements; a piece is walked in blocks whose operands are neighbours in memory, or
// were brought together in a buffer that fits the first-level cache, so that the loop over vectors is written once.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

namespace fastloss {
namespace {

constexpr int64_t kBlock = 1024;

// n neighbours of an operand from element `position` of a run that starts at `run`.
template <class T>
inline const T* gathered(const Operand& operand, int64_t run, int64_t position, int64_t n, T* buffer) {
  const int64_t stride = operand.strides[2];
  const T* from = static_cast<const T*>(operand.data) + run + position * stride;
  if (stride == 1) return from;
  for (int64_t i = 0; i < n; ++i) buffer[i] = from[i * stride];
  return buffer;
}

template <class T, class F>
struct Elementwise {
  using A = acc_of<T>;
  using V = Vectorized<A>;
  static constexpr int64_t kWidth = Vectorized<T>::size();

  const ElementwiseCall& c;
  bool each;   // Reduction::kNone: one loss, and one upstream gradient, for each element
  A scale = 0; // of every gradient otherwise

  explicit Elementwise(const ElementwiseCall& call) : c(call), each(static_cast<Reduction>(call.reduction) == Reduction::kNone) {
    if (call.grad_scalar && !each) scale = *static_cast<const A*>(call.grad_scalar) / *static_cast<const A*>(call.divisor);
  }

  // The operands of one block; third and weight are null where the call has none.
  struct Block {
    const T *input, *target, *third, *weight, *grad;
    Block from(int64_t i) const { return {input + i, target + i, third ? third + i : third, weight ? weight + i : weight, nullptr}; }
  };

  // visit(block, first element, number of elements) over the elements [begin, end) in order.
  template <class Visit>
  void each_block(int64_t begin, int64_t end, const Visit& visit) const {
    alignas(64) T buffers[5][kBlock];
    const Operand* const operands[5] = {&c.input, &c.target, &c.third, &c.weight, &c.grad_loss};
    while (begin < end) {
      const int64_t column = begin % c.sizes[2], row = begin / c.sizes[2];
      const int64_t b = row % c.sizes[1], a = row / c.sizes[1];
      const int64_t length = std::min(c.sizes[2] - column, end - begin);
      for (int64_t i = 0; i < length; i += kBlock) {
        const int64_t n = std::min(kBlock, length - i);
        const T* at[5];
        for (int k = 0; k < 5; ++k) {
          const Operand& o = *operands[k];
          at[k] = o.data ? gathered(o, a * o.strides[0] + b * o.strides[1], column + i, n, buffers[k]) : nullptr;
        }
        visit(Block{at[0], at[1], at[2], at[3], at[4]}, begin + i, n);
      }
      begin += length;
    }
  }

  // one(partials, weights, first element, number of elements) for each vector of T, with one entry a part in both arrays.
  template <class One>
  inline void each_vector_of(const Block& block, int64_t n, const One& one) const {
    each_vector<T>(n, [&](int64_t i, int64_t count) {
      const auto x = load_parts(block.input + i, count), t = load_parts(block.target + i, count);
      Parted<T> z, w;
      z.fill(V(1));
      w.fill(V(1));
      if (block.third) z = load_parts(block.third + i, count);
      if (block.weight) w = load_parts(block.weight + i, count);
      std::array<Partials<V>, kParts<T>> f;
      for (int k = 0; k < kParts<T>; ++k) f[k] = F::eval(x[k], t[k], z[k], c.params);
      one(f, w, i, count);
    });
  }

  // Zeroes behind the elements that a vector really has: `count` of T, of which part k begins with its k-th vector of acc.
  static V only(V v, int k, int64_t count) { return V::set(V(0), v, std::clamp<int64_t>(count - k * V::size(), 0, V::size())); }

  void forward(int64_t begin, int64_t end, double* sums) const {
    double loss = 0, weights = 0;
    each_block(begin, end, [&](const Block& block, int64_t at, int64_t n) {
      if (each) {
        T* const losses = data(c.loss) + at;
        each_vector_of(block, n, [&](const auto& f, const Parted<T>& w, int64_t i, int64_t count) {
          Parted<T> values;
          for (int k = 0; k < kParts<T>; ++k) values[k] = f[k].value * w[k];
          store_parts(losses + i, values, count);
        });
        return;
      }
      for (int64_t first = 0; first < n; first += kFewVectors * kWidth) {
        V value(0), weight(0);
        each_vector_of(block.from(first), std::min(kFewVectors * kWidth, n - first),
                       [&](const auto& f, const Parted<T>& w, int64_t, int64_t count) {
          for (int k = 0; k < kParts<T>; ++k) {
            value = value + (count == kWidth ? f[k].value * w[k] : only(f[k].value * w[k], k, count));
            if (block.weight) weight = weight + (count == kWidth ? w[k] : only(w[k], k, count));
          }
        });
        loss += horizontal_sum(value);
        weights += horizontal_sum(weight);
      }
    });
    sums[0] = loss;
    sums[1] = weights;
  }

  void backward(int64_t begin, int64_t end) const {
    T* const grads[3] = {data(c.grad_input), data(c.grad_target), data(c.grad_third)};
    each_block(begin, end, [&](const Block& block, int64_t at, int64_t n) {
      each_vector_of(block, n, [&](const auto& f, const Parted<T>& w, int64_t i, int64_t count) {
        Parted<T> g, found;
        g.fill(V(scale));
        if (each) g = load_parts(block.grad + i, count);
        for (int k = 0; k < kParts<T>; ++k) g[k] = g[k] * w[k];
        const auto write = [&](T* grad, auto field) {
          if (!grad) return;
          for (int k = 0; k < kParts<T>; ++k) found[k] = g[k] * f[k].*field;
          store_parts(grad + at + i, found, count);
        };
        write(grads[0], &Partials<V>::input);
        write(grads[1], &Partials<V>::target);
        write(grads[2], &Partials<V>::third);
      });
    });
  }

  static T* data(const Operand& operand) { return static_cast<T*>(const_cast<void*>(operand.data)); }
};

template <bool kForward, class T, class F>
void run(const ElementwiseCall& call, int64_t begin, int64_t end, double* sums) {
  const Elementwise<T, F> engine(call);
  if constexpr (kForward) engine.forward(begin, end, sums);
  else engine.backward(begin, end);
}

template <bool kForward, class T>
void run(const ElementwiseCall& call, int functor, int64_t begin, int64_t end, double* sums) {
  int index = 0;
#define FASTLOSS_RUN(name, Functor) \
  if (functor == index++) return run<kForward, T, Functor>(call, begin, end, sums);
  FASTLOSS_ELEMENTWISE(FASTLOSS_RUN)
#undef FASTLOSS_RUN
}

template <bool kForward>
void run(const ElementwiseCall& call, Scalar scalar, int functor, int64_t begin, int64_t end, double* sums) {
  return with_type(scalar, [&](auto zero) { return run<kForward, decltype(zero)>(call, functor, begin, end, sums); });
}

}  // namespace

void kernel::elementwise_forward(const ElementwiseCall& call, Scalar scalar, int functor, int64_t begin, int64_t end, double* sums) {
  run<true>(call, scalar, functor, begin, end, sums);
}

void kernel::elementwise_backward(const ElementwiseCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  run<false>(call, scalar, functor, begin, end, nullptr);
}

}  // namespace fastloss
