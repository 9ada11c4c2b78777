// The row engine on the CPU: one source, compiled once for each instruction set.
//
// Numbers are loaded in blocks that fit the first-level cache, converted to float (double for double) and transformed there,
// so that every loop below is written once, for `acc`, whatever the input's type. Memory is read once a sweep.

#define FASTLOSS_VECTORIZED
#include "kernels.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <type_traits>

namespace fastloss {
namespace {

template <class T>
using acc_of = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kBlock = 2048;       // elements staged at a time: 8 kB of float
constexpr int64_t kTileBytes = 1 << 18;  // a tile of neighbouring rows stays in the second-level cache between its sweeps
constexpr int64_t kMaxLanes = 1024;
constexpr int64_t kFewVectors = 16;
constexpr double kTinyLog = -1e4;      // exp(kTinyLog) is 0, and 0 * kTinyLog is 0 where 0 * -inf is NaN

template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();

int64_t tile_lanes(const RowCall& c) {
  const int64_t fitting = kTileBytes / 4 / std::max<int64_t>(c.classes, 1) / 16 * 16;
  return std::clamp<int64_t>(fitting, 64, kMaxLanes);
}

bool contiguous(const RowCall& c) { return c.inner == 1 && c.class_stride == 1; }

int64_t row_items(const RowCall& c) {
  if (contiguous(c)) return c.outer;
  const int64_t lanes = tile_lanes(c);
  return c.outer * ((c.inner + lanes - 1) / lanes);
}

// f(i, vector loads of count lanes): the main loop and its tail in one place.
template <class A, class F>
inline void each_vector(int64_t n, F&& f) {
  constexpr int64_t width = Vectorized<A>::size();
  int64_t i = 0;
  for (; i + width <= n; i += width) f(i, width);
  if (i < n) f(i, n - i);
}

template <class A>
inline Vectorized<A> load(const A* p, int64_t count) {
  return count == Vectorized<A>::size() ? Vectorized<A>::loadu(p) : Vectorized<A>::loadu(p, count);
}

template <class A>
inline void store(A* p, Vectorized<A> v, int64_t count) {
  if (count == Vectorized<A>::size()) v.store(p);
  else v.store(p, count);
}

// The vectors of acc that one vector of T widens to: one for float and double, two for the 16-bit types.
template <class T>
constexpr int kParts = sizeof(acc_of<T>) / sizeof(T);

template <class T>
using Parted = std::array<Vectorized<acc_of<T>>, kParts<T>>;

template <class T>
inline Parted<T> load_parts(const T* p, int64_t count) {
  if constexpr (kParts<T> == 1) {
    return {load(p, count)};
  } else {
    const auto [low, high] = at::vec::convert_to_float<T>(load(p, count));
    return {low, high};
  }
}

template <class T>
inline void store_parts(T* p, const Parted<T>& v, int64_t count) {
  if constexpr (kParts<T> == 1) store(p, v[0], count);
  else store(p, at::vec::convert_from_float<T>(v[0], v[1]), count);
}

template <class T>
inline void widen(const T* from, acc_of<T>* to, int64_t n) {
  constexpr int64_t width = Vectorized<acc_of<T>>::size();
  each_vector<T>(n, [&](int64_t i, int64_t count) {
    const auto parts = load_parts(from + i, count);
    for (int k = 0; k < kParts<T>; ++k) {
      const int64_t left = std::min(width, count - k * width);
      if (left > 0) store(to + i + k * width, parts[k], left);
    }
  });
}

// What happens to a logit before the softmax, and its derivative as a function of the result.
template <class A>
struct Transform {
  A scale, cap;
  explicit Transform(const RowCall& c) : scale(c.logit_scale), cap(c.softcap) {}
  bool identity() const { return cap == 0 && scale == 1; }
  template <class V>
  V apply(V x) const { return cap != 0 ? V(cap) * tanh(x * V(scale / cap)) : x * V(scale); }
  template <class V>
  V derivative(V z) const {
    if (cap == 0) return V(scale);
    const V t = z * V(1 / cap);
    return V(scale) * (V(1) - t * t);
  }
};

// n transformed logits from `from` as acc; `from` itself when there is nothing to do.
template <class T>
inline const acc_of<T>* staged(const T* from, int64_t n, acc_of<T>* scratch, const Transform<acc_of<T>>& transform) {
  using A = acc_of<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (transform.identity()) return from;
  }
  widen(from, scratch, n);
  if (!transform.identity()) {
    each_vector<A>(n, [&](int64_t i, int64_t count) { store(scratch + i, transform.apply(load(scratch + i, count)), count); });
  }
  return scratch;
}

// What to subtract before exp: the maximum, but 0 while only -inf (or NaN) was seen, so that -inf adds 0 and NaN adds NaN.
template <class V>
inline V finite_shift(V max) { return select(less(V(-std::numeric_limits<double>::infinity()), max), max, V(0)); }

template <class A>
inline A horizontal_sum(Vectorized<A> v) {
  alignas(64) A lanes[Vectorized<A>::size()];
  v.store(lanes);
  A sum = 0;
  for (A lane : lanes) sum += lane;
  return sum;
}

template <class A>
inline A block_max(const A* z, int64_t n) {
  using V = Vectorized<A>;
  constexpr int64_t width = V::size();
  V best[4] = {V(-kInf<A>), V(-kInf<A>), V(-kInf<A>), V(-kInf<A>)};  // four chains hide the latency of max
  int64_t i = 0;
  for (; i + 4 * width <= n; i += 4 * width) {
    for (int k = 0; k < 4; ++k) best[k] = larger(best[k], V::loadu(z + i + k * width));
  }
  for (; i < n; i += width) {
    const int64_t count = std::min(width, n - i);
    best[0] = larger(best[0], V::set(V(-kInf<A>), load(z + i, count), count));
  }
  alignas(64) A lanes[width];
  larger(larger(best[0], best[1]), larger(best[2], best[3])).store(lanes);
  A result = -kInf<A>;
  for (A lane : lanes) result = larger(result, lane);
  return result;
}

// Fetches `next` meanwhile, the memory that the sweep reads after this block: the sum is bound by arithmetic.
template <class T, class A>
inline A block_sum_exp(const A* z, int64_t n, A max, const T* next) {
  using V = Vectorized<A>;
  constexpr int64_t width = V::size();
  const V shift(max);
  V sums[2] = {V(0), V(0)};
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    for (int k = 0; k < 2; ++k) {
      __builtin_prefetch(next + i + k * width);
      sums[k] = sums[k] + exp(V::loadu(z + i + k * width) - shift);
    }
  }
  for (; i < n; i += width) {
    const int64_t count = std::min(width, n - i);
    sums[0] = sums[0] + V::set(V(0), exp(load(z + i, count) - shift), count);
  }
  return horizontal_sum(sums[0] + sums[1]);
}

// Everything about a call that is the same for every row.
template <class T, class F, bool kSoft>
struct Row {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  const RowCall& c;
  const T* input;
  const A* weight;
  Transform<A> transform;
  A smooth;        // label_smoothing / C: what every class gets
  A keep;          // 1 - label_smoothing: what remains of the target
  bool spread;     // every class has a target share, so that a sweep over f is needed
  bool extras;     // the backward needs more than p * coefficient
  bool per_row;    // the loss has an upstream gradient a row
  A shared_loss = 0;  // otherwise: the one upstream gradient, over the divisor of a mean

  explicit Row(const RowCall& call)
      : c(call), input(static_cast<const T*>(call.input)), weight(static_cast<const A*>(call.weight)), transform(call),
        smooth(call.label_smoothing / std::max<int64_t>(call.classes, 1)), keep(1 - call.label_smoothing),
        spread(kSoft || call.label_smoothing != 0),
        extras(spread || call.grad_entropy || !transform.identity()),
        per_row(static_cast<Reduction>(call.reduction) == Reduction::kNone) {
    if (call.grad_loss && !per_row) {
      shared_loss = *static_cast<const A*>(call.grad_loss);
      if (static_cast<Reduction>(call.reduction) != Reduction::kSum) shared_loss /= *static_cast<const A*>(call.divisor);
    }
  }

  const T* at(int64_t outer, int64_t inner) const { return input + outer * c.outer_stride + inner; }
  const T* probabilities(int64_t outer, int64_t inner) const {
    return static_cast<const T*>(c.target) + outer * c.target_outer_stride + inner;
  }
  int64_t label(int64_t row) const { return static_cast<const int64_t*>(c.target)[row]; }
  bool counts(int64_t row) const { return kSoft || label(row) != c.ignore_index; }
  // Through a vector, so that it has the bits that the sweeps saw: accuracy compares it with their maximum.
  A logit(const T* row, int64_t index) const {
    const A x = static_cast<A>(row[index * c.class_stride]);
    if (transform.identity()) return x;
    alignas(64) A lanes[V::size()];
    transform.apply(V(x)).store(lanes);
    return lanes[0];
  }
  A class_weight(int64_t index) const { return weight ? weight[index] : A(1); }

  // w_c q_c over a vector, except for the share (keep) of an index target.
  template <class W>
  W share(W probability, W weights) const {
    const W q = kSoft ? probability * W(keep) + W(smooth) : W(smooth);
    return weight ? q * weights : q;
  }

  // What one class adds to a row's loss, slope and entropy beyond the softmax's own sums.
  template <class W>
  struct Parts {
    W value{0}, slope{0}, entropy{0};
  };

  Parts<V> parts(V z, V probability, V weights, V max, V log_sum) const {
    Parts<V> result;
    const V shifted = z - max;
    if (spread) {
      const auto f = F::eval(shifted - log_sum, c.params);
      const V wq = share(probability, weights);
      result.value = f.value * wq;
      result.slope = f.derivative * wq;
    }
    if (c.entropy) result.entropy = exp(shifted) * larger(V(kTinyLog), shifted);
    return result;
  }

  // Write everything that the forward keeps of a row.
  void finish(int64_t row, const T* logits, A max, A sum, A log_sum, const Parts<A>& sums, bool accurate) const {
    A value = sums.value, slope = sums.slope;
    bool correct = accurate;
    const bool in_use = counts(row);
    if constexpr (!kSoft) {
      if (in_use) {
        const int64_t y = label(row);
        const A z = logit(logits, y);
        const auto f = F::eval((z - max) - log_sum, c.params);
        const A w = spread ? keep * class_weight(y) : class_weight(y);
        value += w * f.value;
        slope += w * f.derivative;
        correct = z >= max;
      } else {
        value = slope = 0;
        correct = false;
      }
    }
    if (c.z_loss != 0 && in_use) {
      const A lse = max + log_sum;
      value += static_cast<A>(c.z_loss) * lse * lse;
    }
    static_cast<A*>(c.max)[row] = max;
    static_cast<A*>(c.log_sum)[row] = log_sum;
    static_cast<A*>(c.slope)[row] = slope;
    static_cast<A*>(c.row_loss)[row] = value;
    if (c.entropy) static_cast<A*>(c.entropy)[row] = log_sum - sums.entropy / sum;
    // NaN is larger than any target; it does not show in max, but in the sum, where +inf shows the same.
    if (c.accuracy) static_cast<A*>(c.accuracy)[row] = correct && (sum == sum || !has_nan(logits));
  }

  bool has_nan(const T* logits) const {
    for (int64_t k = 0; k < c.classes; ++k) {
      const A x = static_cast<A>(logits[k * c.class_stride]);
      if (x != x) return true;
    }
    return false;
  }

  bool probable_class_is_best(const T* logits, const T* target, A max) const {
    if (!kSoft || !c.accuracy) return false;
    int64_t best = 0;
    for (int64_t k = 1; k < c.classes; ++k) {
      if (target[k * c.target_class_stride] > target[best * c.target_class_stride]) best = k;
    }
    return c.classes > 0 && logit(logits, best) >= max;
  }

  // Contiguous class: one row at a time, its softmax statistics block by block.
  void forward_row(int64_t row) const {
    alignas(64) A z_block[kBlock], t_block[kBlock];
    const T* logits = at(row, 0);
    A max = 0, log_sum = 0;
    double sum = 1;
    if constexpr (F::kNormalise) {
      max = -kInf<A>;
      sum = 0;
      for (int64_t i = 0; i < c.classes; i += kBlock) {
        const int64_t n = std::min(kBlock, c.classes - i);
        const A* z = staged(logits + i, n, z_block, transform);
        const A best = block_max(z, n);
        if (best > max) {
          sum *= exp(max - best);
          max = best;
        }
        sum += block_sum_exp(z, n, finite_shift(max), logits + i + n);
      }
      log_sum = log(static_cast<A>(sum));
    }
    Parts<double> sums;
    const T* target = kSoft ? probabilities(row, 0) : nullptr;
    if (spread || c.entropy) {
      for (int64_t i = 0; i < c.classes; i += kBlock) {
        const int64_t n = std::min(kBlock, c.classes - i);
        const A* z = staged(logits + i, n, z_block, transform);
        if constexpr (kSoft) widen(target + i, t_block, n);
        // Few additions a lane before the lanes are added in double: rounding grows with their number.
        for (int64_t j = 0; j < n; j += kFewVectors * V::size()) {
          Parts<V> block;
          each_vector<A>(std::min<int64_t>(kFewVectors * V::size(), n - j), [&](int64_t offset, int64_t count) {
            const int64_t k = j + offset;
            const auto part = parts(
                load(z + k, count), kSoft ? load(t_block + k, count) : V(0), weight ? load(weight + i + k, count) : V(1), V(max), V(log_sum));
            block.value = block.value + V::set(V(0), part.value, count);
            block.slope = block.slope + V::set(V(0), part.slope, count);
            block.entropy = block.entropy + V::set(V(0), part.entropy, count);
          });
          sums.value += horizontal_sum(block.value);
          sums.slope += horizontal_sum(block.slope);
          sums.entropy += horizontal_sum(block.entropy);
        }
      }
    }
    const Parts<A> total{static_cast<A>(sums.value), static_cast<A>(sums.slope), static_cast<A>(sums.entropy)};
    finish(row, logits, max, static_cast<A>(sum), log_sum, total, probable_class_is_best(logits, target, max));
  }

  // Strided class: a tile of lanes neighbouring rows, swept class by class.
  void forward_tile(int64_t outer, int64_t first, int64_t lanes) const {
    alignas(64) A z_block[kMaxLanes], t_block[kMaxLanes], max[kMaxLanes], log_sum[kMaxLanes];
    Blocked sum, value, slope, entropy;
    const T* logits = at(outer, first);
    const T* target = kSoft ? probabilities(outer, first) : nullptr;
    if constexpr (F::kNormalise) {
      std::fill(max, max + lanes, -kInf<A>);
      for (int64_t k = 0; k < c.classes; ++k) {
        const A* z = staged(logits + k * c.class_stride, lanes, z_block, transform);
        const T* next = logits + (k + 1) * c.class_stride;  // hardware prefetchers stop at a page, and classes lie pages apart
        each_vector<A>(lanes, [&](int64_t j, int64_t n) {
          if (k + 1 < c.classes) __builtin_prefetch(next + j);
          store(max + j, larger(load(max + j, n), load(z + j, n)), n);
        });
      }
      for (int64_t k = 0; k < c.classes; ++k) {
        const A* z = staged(logits + k * c.class_stride, lanes, z_block, transform);
        each_vector<A>(lanes, [&](int64_t j, int64_t n) { sum.add(j, exp(load(z + j, n) - finite_shift(load(max + j, n))), n); });
        if (sum.full(k)) sum.flush(lanes);
      }
      sum.flush(lanes);
      each_vector<A>(lanes, [&](int64_t j, int64_t n) { store(log_sum + j, log(load(sum.total + j, n)), n); });
    } else {
      std::fill(max, max + lanes, A(0));
      std::fill(log_sum, log_sum + lanes, A(0));
    }
    if (spread || c.entropy) {
      for (int64_t k = 0; k < c.classes; ++k) {
        const A* z = staged(logits + k * c.class_stride, lanes, z_block, transform);
        if constexpr (kSoft) widen(target + k * c.target_class_stride, t_block, lanes);
        const V weights(class_weight(k));
        each_vector<A>(lanes, [&](int64_t j, int64_t n) {
          const auto part = parts(load(z + j, n), kSoft ? load(t_block + j, n) : V(0), weights, load(max + j, n), load(log_sum + j, n));
          value.add(j, part.value, n);
          slope.add(j, part.slope, n);
          entropy.add(j, part.entropy, n);
        });
        if (sum.full(k)) {
          value.flush(lanes);
          slope.flush(lanes);
          entropy.flush(lanes);
        }
      }
      value.flush(lanes);
      slope.flush(lanes);
      entropy.flush(lanes);
    }
    for (int64_t j = 0; j < lanes; ++j) {
      const Parts<A> total{value.total[j], slope.total[j], entropy.total[j]};
      finish(outer * c.inner + first + j, logits + j, max[j], sum.total[j], log_sum[j], total,
             probable_class_is_best(logits + j, target + j, max[j]));
    }
  }

  // One array of sums over classes, a lane each, in two levels: short sums, and compensated ones of these (Kahan 1965).
  struct Blocked {
    alignas(64) A part[kMaxLanes] = {}, total[kMaxLanes] = {}, lost[kMaxLanes] = {};
    static bool full(int64_t k) { return k % kFewVectors == kFewVectors - 1; }
    void add(int64_t j, V v, int64_t n) { store(part + j, load(part + j, n) + v, n); }
    void flush(int64_t lanes) {
      each_vector<A>(lanes, [&](int64_t j, int64_t n) {
        const V before = load(total + j, n), more = load(part + j, n) - load(lost + j, n), sum = before + more;
        const auto finite = less(larger(sum, V(0) - sum), V(kInf<A>));
        store(lost + j, select(finite, (sum - before) - more, V(0)), n);
        store(total + j, sum, n);
        store(part + j, V(0), n);
      });
    }
  };

  // What the gradient of one row needs: W is A, or V for a vector of one row or of neighbouring rows.
  template <class W>
  struct Coefficients {
    W max, log_sum, inverse_sum;
    W probability;     // times p_c
    W loss;            // upstream gradient of the row's loss
    W entropy, level;  // upstream gradient of the entropy, and the entropy

    template <class To, class Convert>
    Coefficients<To> map(const Convert& convert) const {
      return {convert(max), convert(log_sum), convert(inverse_sum), convert(probability), convert(loss), convert(entropy), convert(level)};
    }
  };

  // Gradient of one logit but for an index target's share, before the transform's derivative.
  template <class W>
  W gradient(W z, W probability, W weights, const Coefficients<W>& k) const {
    const W shifted = z - k.max;
    W result(0), p(0);
    if constexpr (F::kNormalise) {
      p = exp(shifted) * k.inverse_sum;
      result = p * k.probability;
    }
    if (extras) {
      const W l = shifted - k.log_sum;
      if (spread) result = result + k.loss * share(probability, weights) * F::eval(l, c.params).derivative;
      if (c.grad_entropy) result = result - k.entropy * p * (larger(W(kTinyLog), l) + k.level);
      result = result * transform.derivative(z);
    }
    return result;
  }

  A upstream(const void* gradients, int64_t row) const { return gradients ? static_cast<const A*>(gradients)[row] : A(0); }

  // All but inverse_sum, which neighbouring rows compute together.
  Coefficients<A> coefficients(int64_t row) const {
    const A max = static_cast<const A*>(c.max)[row], log_sum = static_cast<const A*>(c.log_sum)[row];
    A loss = 0, probability = upstream(c.grad_lse, row);
    // An ignored row's share is 0 even where the divisor is 0 and the upstream gradient over it is no number.
    if (c.grad_loss && counts(row)) {
      loss = per_row ? static_cast<const A*>(c.grad_loss)[row] : shared_loss;
      probability -= loss * static_cast<const A*>(c.slope)[row];
      if (c.z_loss != 0) probability += loss * static_cast<A>(2 * c.z_loss) * (max + log_sum);
    }
    return {max, log_sum, A(0), probability, loss, upstream(c.grad_entropy, row), c.grad_entropy ? static_cast<const A*>(c.entropy)[row] : A(0)};
  }

  // A row without any upstream gradient is 0, whatever it holds.
  bool nothing(int64_t row, const Coefficients<A>& k) const {
    return !(c.grad_loss && counts(row)) && k.probability == 0 && k.entropy == 0;
  }

  // Add an index target's share to the gradient at the label. A 16-bit gradient is computed anew, so that it is rounded once.
  void add_label(T* grad, A z, int64_t y, const Coefficients<A>& k) const {
    const A base = kParts<T> == 1 ? static_cast<A>(*grad) : gradient(z, A(0), class_weight(y), k);
    A share = k.loss * class_weight(y) * F::eval((z - k.max) - k.log_sum, c.params).derivative;
    if (spread) share *= keep;
    *grad = static_cast<T>(base + share * transform.derivative(z));
  }

  T* grad_at(int64_t outer, int64_t inner) const { return static_cast<T*>(c.grad) + outer * c.grad_outer_stride + inner; }
  // The gradient of n logits at once. weights(i) and coefficients(i) give the vectors that belong to element i.
  template <class Weights, class Vectors>
  void backward_sweep(const T* logits, const T* target, T* grad, int64_t n, const Weights& weights, const Vectors& vectors) const {
    constexpr int64_t width = V::size();
    each_vector<T>(n, [&](int64_t i, int64_t count) {
      auto z = load_parts(logits + i, count);
      Parted<T> t{};
      if constexpr (kSoft) t = load_parts(target + i, count);
      for (int k = 0; k < kParts<T>; ++k) {
        if (kParts<T> > 1 && k * width >= count) break;
        const int64_t j = i + k * width, left = std::min(width, count - k * width);
        if (extras) z[k] = transform.apply(z[k]);
        z[k] = gradient(z[k], t[k], weights(j, left), vectors(j, left));
      }
      store_parts(grad + i, z, count);
    });
  }

  void backward_row(int64_t row) const {
    const T* logits = at(row, 0);
    T* grad = grad_at(row, 0);
    auto k = coefficients(row);
    if (nothing(row, k)) {
      std::fill(grad, grad + c.classes, T(0));
      return;
    }
    k.inverse_sum = exp(-k.log_sum);
    const int64_t y = kSoft || !counts(row) ? -1 : label(row);
    const A z_label = y < 0 ? A(0) : logit(logits, y);  // read before an in-place gradient overwrites it
    const auto all = k.template map<V>([](A x) { return V(x); });
    backward_sweep(
        logits, kSoft ? probabilities(row, 0) : nullptr, grad, c.classes,
        [&](int64_t j, int64_t n) { return spread && weight ? load(weight + j, n) : V(1); }, [&](int64_t, int64_t) { return all; });
    if (y >= 0) add_label(grad + y, z_label, y, k);
  }

  void backward_tile(int64_t outer, int64_t first, int64_t lanes) const {
    alignas(64) A fields[7][kMaxLanes];
    alignas(64) A z_label[kMaxLanes];
    const bool overwrites = c.grad == c.input;
    const T* logits = at(outer, first);
    T* grad = grad_at(outer, first);
    const int64_t row = outer * c.inner + first;
    bool silent = false;
    for (int64_t j = 0; j < lanes; ++j) {
      const auto k = coefficients(row + j);
      silent |= nothing(row + j, k);
      int f = 0;
      k.template map<int>([&](A x) { return fields[f++][j] = x, 0; });
      if (!kSoft && overwrites && counts(row + j)) z_label[j] = logit(logits + j, label(row + j));
    }
    each_vector<A>(lanes, [&](int64_t j, int64_t n) { store(fields[2] + j, exp(V(0) - load(fields[1] + j, n)), n); });
    const auto vectors = [&](int64_t j, int64_t n) {
      return Coefficients<V>{load(fields[0] + j, n), load(fields[1] + j, n), load(fields[2] + j, n), load(fields[3] + j, n),
                             load(fields[4] + j, n), load(fields[5] + j, n), load(fields[6] + j, n)};
    };
    for (int64_t k = 0; k < c.classes; ++k) {
      const V w(class_weight(k));
      backward_sweep(
          logits + k * c.class_stride, kSoft ? probabilities(outer, first) + k * c.target_class_stride : nullptr,
          grad + k * c.grad_class_stride, lanes, [&](int64_t, int64_t) { return w; }, vectors);
    }
    for (int64_t j = 0; j < lanes; ++j) {
      if (silent && nothing(row + j, coefficients(row + j))) {
        for (int64_t k = 0; k < c.classes; ++k) grad[k * c.grad_class_stride + j] = T(0);
      } else if (!kSoft && counts(row + j)) {
        const int64_t y = label(row + j);
        const Coefficients<A> k{fields[0][j], fields[1][j], fields[2][j], fields[3][j], fields[4][j], fields[5][j], fields[6][j]};
        // Where the logits are still there, they are in the cache now and were not before the sweep.
        add_label(grad + y * c.grad_class_stride + j, overwrites ? z_label[j] : logit(logits + j, y), y, k);
      }
    }
  }

  template <bool kForward>
  void run(int64_t begin, int64_t end) const {
    const bool rows = contiguous(c);
    const int64_t lanes = rows ? 1 : tile_lanes(c), tiles = (c.inner + lanes - 1) / lanes;
    for (int64_t item = begin; item < end; ++item) {
      if (rows) {
        if constexpr (kForward) forward_row(item);
        else backward_row(item);
      } else {
        const int64_t outer = item / tiles, first = item % tiles * lanes;
        const int64_t n = std::min(lanes, c.inner - first);
        if constexpr (kForward) forward_tile(outer, first, n);
        else backward_tile(outer, first, n);
      }
    }
  }
};

template <bool kForward, class T, class F>
void run(const RowCall& call, bool soft, int64_t begin, int64_t end) {
  if (soft) Row<T, F, true>(call).template run<kForward>(begin, end);
  else Row<T, F, false>(call).template run<kForward>(begin, end);
}

template <bool kForward, class T>
void run(const RowCall& call, int functor, bool soft, int64_t begin, int64_t end) {
  int index = 0;
#define FASTLOSS_RUN(name, Functor) \
  if (functor == index++) return run<kForward, T, Functor>(call, soft, begin, end);
  FASTLOSS_ROW(FASTLOSS_RUN)
#undef FASTLOSS_RUN
}

template <bool kForward>
void run(const RowCall& call, Scalar scalar, int functor, bool soft, int64_t begin, int64_t end) {
  switch (scalar) {
    case Scalar::kFloat: return run<kForward, float>(call, functor, soft, begin, end);
    case Scalar::kDouble: return run<kForward, double>(call, functor, soft, begin, end);
    case Scalar::kBFloat16: return run<kForward, c10::BFloat16>(call, functor, soft, begin, end);
    case Scalar::kHalf: return run<kForward, c10::Half>(call, functor, soft, begin, end);
  }
}

}  // namespace
}  // namespace fastloss

extern "C" __attribute__((visibility("default"))) const fastloss::Kernels fastloss_kernels = {
    fastloss::row_items, fastloss::run<true>, fastloss::run<false>};
