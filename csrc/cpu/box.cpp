// The box engine on the CPU: one source, compiled once for each instruction set.
//
// A vector holds one coordinate of as many boxes as it has lanes: four vectors of interleaved coordinates are taken apart as they are
// loaded, and gradients are put together as they are stored.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <vector>

namespace fastloss {
namespace {


template <class T>
using Lanes = Vectorized<acc_of<T>>;

// As many boxes as a vector has lanes, from interleaved coordinates.
template <class T>
inline Box<Lanes<T>> take_apart(const T* from) {
  using V = Lanes<T>;
  V v[4];
  for (int i = 0; i < 4; i += kParts<T>) {
    const auto parts = load_parts(from + i * V::size(), Vectorized<T>::size());
    for (int k = 0; k < kParts<T>; ++k) v[i + k] = parts[k];
  }
  const auto [low_x, low_y] = at::vec::deinterleave2(v[0], v[1]);
  const auto [high_x, high_y] = at::vec::deinterleave2(v[2], v[3]);
  const auto [x1, x2] = at::vec::deinterleave2(low_x, high_x);
  const auto [y1, y2] = at::vec::deinterleave2(low_y, high_y);
  return {x1, y1, x2, y2};
}

template <class T>
inline void put_together(T* to, const Box<Lanes<T>>& box) {
  using V = Lanes<T>;
  const auto [low_x, high_x] = at::vec::interleave2(box.x1, box.x2);
  const auto [low_y, high_y] = at::vec::interleave2(box.y1, box.y2);
  const auto [v0, v1] = at::vec::interleave2(low_x, low_y);
  const auto [v2, v3] = at::vec::interleave2(high_x, high_y);
  const V v[4] = {v0, v1, v2, v3};
  for (int i = 0; i < 4; i += kParts<T>) {
    Parted<T> parts;
    for (int k = 0; k < kParts<T>; ++k) parts[k] = v[i + k];
    store_parts(to + i * V::size(), parts, Vectorized<T>::size());
  }
}

// `count` boxes from `row` on; the lanes behind them hold boxes of zeros.
template <class T>
inline Box<Lanes<T>> load_boxes(const Boxes& boxes, int64_t row, int64_t count) {
  using V = Lanes<T>;
  using A = acc_of<T>;
  const int64_t across = boxes.coordinate_stride;
  const T* from = static_cast<const T*>(boxes.data) + row * boxes.row_stride;
  if (boxes.row_stride == 0) {
    return {V(A(from[0])), V(A(from[across])), V(A(from[2 * across])), V(A(from[3 * across]))};
  }
  if (count == V::size() && boxes.row_stride == 4 && across == 1) return take_apart(from);
  alignas(64) T buffer[4 * V::size()] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < 4; ++c) buffer[4 * i + c] = from[i * boxes.row_stride + c * across];
  }
  return take_apart(buffer);
}

template <class T>
inline void store_boxes(T* to, const Box<Lanes<T>>& box, int64_t count) {
  if (count == Lanes<T>::size()) return put_together(to, box);
  alignas(64) T buffer[4 * Lanes<T>::size()];
  put_together(buffer, box);
  std::copy(buffer, buffer + 4 * count, to);
}

template <class V>
inline Box<V> scaled(const Box<V>& box, V by) {
  return {box.x1 * by, box.y1 * by, box.x2 * by, box.y2 * by};
}

template <class T, class F>
void forward(const BoxCall& c, int64_t begin, int64_t end, double* sum) {
  using A = acc_of<T>;
  using V = Lanes<T>;
  const bool each = static_cast<Reduction>(c.reduction) == Reduction::kNone;
  A* const losses = static_cast<A*>(c.loss);
  double total = 0;
  for (int64_t first = begin; first < end; first += kFewVectors * V::size()) {
    V part(0);
    each_vector<A>(std::min(kFewVectors * V::size(), end - first), [&](int64_t i, int64_t count) {
      const int64_t row = first + i;
      const V value = box_slopes<F>(load_boxes<T>(c.first, row, count), load_boxes<T>(c.second, row, count), c.params).value;
      if (each) store(losses + row, value, count);
      else part = part + V::set(V(0), value, count);
    });
    total += horizontal_sum(part);
  }
  *sum = total;
}

template <class T, class F>
void backward(const BoxCall& c, int64_t begin, int64_t end) {
  using A = acc_of<T>;
  using V = Lanes<T>;
  const A* const grads = static_cast<const A*>(c.grad_loss);
  const A shared = *grads / (static_cast<Reduction>(c.reduction) == Reduction::kMean ? static_cast<A>(c.rows) : A(1));
  T* const first = static_cast<T*>(c.grad_first);
  T* const second = static_cast<T*>(c.grad_second);
  each_vector<A>(end - begin, [&](int64_t i, int64_t count) {
    const int64_t row = begin + i;
    const auto slopes = box_slopes<F>(load_boxes<T>(c.first, row, count), load_boxes<T>(c.second, row, count), c.params);
    const V g = c.grad_stride == 0 ? V(shared) : load(grads + row, count);
    if (first) store_boxes(first + 4 * row, scaled(slopes.first, g), count);
    if (second) store_boxes(second + 4 * row, scaled(slopes.second, g), count);
  });
}

// The coordinates of a set of boxes, each in an array of its own, which ends with a whole vector.
template <class T>
struct Apart {
  using A = acc_of<T>;
  using V = Lanes<T>;
  int64_t stride;
  std::vector<A> values;

  Apart(const Boxes& boxes, int64_t begin, int64_t end)
      : stride((end - begin + V::size() - 1) / V::size() * V::size()), values(4 * stride) {
    each_vector<A>(end - begin, [&](int64_t i, int64_t count) {
      const Box<V> box = load_boxes<T>(boxes, begin + i, count);
      box.x1.store(&values[i]);
      box.y1.store(&values[stride + i]);
      box.x2.store(&values[2 * stride + i]);
      box.y2.store(&values[3 * stride + i]);
    });
  }
  Box<V> at(int64_t i) const {
    const A* from = &values[i];
    return {V::loadu(from), V::loadu(from + stride), V::loadu(from + 2 * stride), V::loadu(from + 3 * stride)};
  }
  // One box in every lane.
  Box<V> everywhere(int64_t i) const { return {V(values[i]), V(values[stride + i]), V(values[2 * stride + i]), V(values[3 * stride + i])}; }
};

// A sum in every lane with the rounding errors of its additions (Knuth 1969).
template <class V>
struct Total {
  V high{0}, low{0};
  void add(V x) {
    const V sum = high + x, back = sum - high;
    low = low + ((high - (sum - back)) + (x - back));
    high = sum;
  }
  // An infinite sum has a NaN for its error.
  V value() const { return high + select(equal(low, low), low, V(0)); }
};

template <class V>
struct BoxTotal {
  Total<V> x1, y1, x2, y2;
  void add(const Box<V>& box) {
    x1.add(box.x1);
    y1.add(box.y1);
    x2.add(box.x2);
    y2.add(box.y2);
  }
  Box<V> value() const { return {x1.value(), y1.value(), x2.value(), y2.value()}; }
};

template <class T, class F>
void pairs_forward(const BoxPairsCall& c, int64_t begin, int64_t end) {
  using A = acc_of<T>;
  const Apart<T> rows(c.first, begin, end), columns(c.second, 0, c.columns);
  A* const scores = static_cast<A*>(c.score);
  for (int64_t i = begin; i < end; ++i) {
    const auto a = rows.everywhere(i - begin);
    each_vector<A>(c.columns, [&](int64_t j, int64_t count) {
      store(scores + i * c.columns + j, box_slopes<F>(a, columns.at(j), c.params).score, count);
    });
  }
}

// Slopes are of losses: scores have the opposite ones.
template <class T, class F>
void pairs_backward_first(const BoxPairsCall& c, int64_t begin, int64_t end) {
  using A = acc_of<T>;
  using V = Lanes<T>;
  const Apart<T> rows(c.first, begin, end), columns(c.second, 0, c.columns);
  const A* const grads = static_cast<const A*>(c.grad_score);
  T* const to = static_cast<T*>(c.grad_first);
  for (int64_t i = begin; i < end; ++i) {
    const auto a = rows.everywhere(i - begin);
    BoxTotal<V> total;
    each_vector<A>(c.columns, [&](int64_t j, int64_t count) {
      const V g = V(0) - load(grads + i * c.columns + j, count);
      total.add(scaled(box_slopes<F>(a, columns.at(j), c.params).first, g));
    });
    const Box<V> sum = total.value();
    to[4 * i] = static_cast<T>(horizontal_sum(sum.x1));
    to[4 * i + 1] = static_cast<T>(horizontal_sum(sum.y1));
    to[4 * i + 2] = static_cast<T>(horizontal_sum(sum.x2));
    to[4 * i + 3] = static_cast<T>(horizontal_sum(sum.y2));
  }
}

template <class T, class F>
void pairs_backward_second(const BoxPairsCall& c, int64_t begin, int64_t end) {
  using A = acc_of<T>;
  using V = Lanes<T>;
  const Apart<T> rows(c.first, 0, c.rows);
  const A* const grads = static_cast<const A*>(c.grad_score);
  each_vector<A>(end - begin, [&](int64_t i, int64_t count) {
    const int64_t column = begin + i;
    const Box<V> b = load_boxes<T>(c.second, column, count);
    BoxTotal<V> total;
    for (int64_t row = 0; row < c.rows; ++row) {
      const V g = V(0) - load(grads + row * c.columns + column, count);
      total.add(scaled(box_slopes<F>(b, rows.everywhere(row), c.params).first, g));
    }
    store_boxes(static_cast<T*>(c.grad_second) + 4 * column, total.value(), count);
  });
}

// run(zero of the type in memory, functor)
template <class Run>
void choose(Scalar scalar, int functor, const Run& run) {
  with_type(scalar, [&](auto zero) {
    int index = 0;
#define FASTLOSS_RUN(name, Functor) \
  if (functor == index++) return run(zero, Functor{});
    FASTLOSS_BOX(FASTLOSS_RUN)
#undef FASTLOSS_RUN
  });
}

}  // namespace

void kernel::box_forward(const BoxCall& call, Scalar scalar, int functor, int64_t begin, int64_t end, double* sum) {
  choose(scalar, functor, [&](auto zero, auto f) { forward<decltype(zero), decltype(f)>(call, begin, end, sum); });
}

void kernel::box_backward(const BoxCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) { backward<decltype(zero), decltype(f)>(call, begin, end); });
}

void kernel::box_pairs_forward(const BoxPairsCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) { pairs_forward<decltype(zero), decltype(f)>(call, begin, end); });
}

void kernel::box_pairs_backward_first(const BoxPairsCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) { pairs_backward_first<decltype(zero), decltype(f)>(call, begin, end); });
}

void kernel::box_pairs_backward_second(const BoxPairsCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  choose(scalar, functor, [&](auto zero, auto f) { pairs_backward_second<decltype(zero), decltype(f)>(call, begin, end); });
}

}  // namespace fastloss
