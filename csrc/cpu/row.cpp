// The row engine on the CPU: one source, compiled once for each instruction set.
//
// Numbers are loaded in blocks that fit the first-level cache, converted to float (double for double) and transformed there,
// so that every loop below is written once, for `acc`, whatever the input's type. Memory is read once a sweep.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <memory>

namespace fastloss {
namespace {

constexpr int64_t kBlock = 2048;       // elements staged at a time: 8 kB of float
constexpr int64_t kTileElements = 1 << 16;  // a tile of neighbouring rows stays in the second-level cache between its sweeps
constexpr int64_t kMaxLanes = 1024;
constexpr double kTinyLog = -1e4;      // exp(kTinyLog) is 0, and 0 * kTinyLog is 0 where 0 * -inf is NaN

constexpr int64_t padded(int64_t lanes) { return (lanes + 15) / 16 * 16; }

int64_t tile_lanes(const RowCall& c) {
  const int64_t fitting = kTileElements / std::max<int64_t>(c.classes, 1) / 16 * 16;
  return std::clamp<int64_t>(fitting, 64, kMaxLanes);
}

bool contiguous(const RowCall& c) { return c.inner == 1 && c.class_stride == 1; }

// What happens to a logit before the softmax, and its derivative as a function of the result.
template <class A, bool kStablemax>
struct Transform {
  A scale, cap;
  bool stablemax;
  explicit Transform(const RowCall& c) : scale(c.logit_scale), cap(c.softcap), stablemax(kStablemax && c.stablemax) {}
  bool identity() const { return !stablemax && cap == 0 && scale == 1; }
  template <class V>
  V apply(V x) const {
    if constexpr (kStablemax) {
      if (stablemax) return symlog(x * V(scale));
    }
    return cap != 0 ? V(cap) * tanh(x * V(scale / cap)) : x * V(scale);
  }
  template <class V>
  V derivative(V z) const {
    if constexpr (kStablemax) {
      if (stablemax) return V(scale) * exp(V(0) - abs(z));
    }
    if (cap == 0) return V(scale);
    const V t = z * V(1 / cap);
    return V(scale) * (V(1) - t * t);
  }
};

// n transformed logits from `from` as acc; `from` itself when there is nothing to do.
template <class T, bool kStablemax>
inline const acc_of<T>* staged(const T* from, int64_t n, acc_of<T>* scratch, const Transform<acc_of<T>, kStablemax>& transform) {
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
  return horizontal(larger(larger(best[0], best[1]), larger(best[2], best[3])), [](A a, A b) { return larger(a, b); });
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
  using Sums = LaneSums<A, kMaxLanes>;

  const RowCall& c;
  const T* input;
  const A* weight;
  Transform<A, F::kStablemax> transform;
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

  // w_c q_c; `probability` leaves out an index target where its share is added by itself.
  template <class W>
  W share(W probability, W weights) const {
    const W q = probability * W(keep) + W(smooth);
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

  // Loss and slope of a row (or of neighbouring rows) from the sums over its classes and its label's logit and weight.
  template <class W, class Used>
  Parts<W> close(Parts<W> sums, Used used, W z_label, W weight_label, W max, W log_sum) const {
    if constexpr (!kSoft) {
      const auto f = F::eval((z_label - max) - log_sum, c.params);
      const W w = spread ? weight_label * W(keep) : weight_label;
      sums.value = sums.value + w * f.value;
      sums.slope = sums.slope + w * f.derivative;
    }
    if (c.z_loss != 0) {
      const W lse = max + log_sum;
      sums.value = sums.value + W(c.z_loss) * lse * lse;
    }
    return {select(used, sums.value, W(0)), select(used, sums.slope, W(0)), sums.entropy};
  }

  // NaN is larger than any target; it does not show in the maximum, but in the sum, where +inf shows the same.
  void set_accuracy(int64_t row, const T* logits, const T* target, A max, A sum) const {
    bool correct;
    if constexpr (kSoft) correct = probable_class_is_best(logits, target, max);
    else correct = counts(row) && logit(logits, label(row)) >= max;
    static_cast<A*>(c.accuracy)[row] = correct && (sum == sum || !has_nan(logits));
  }

  bool has_nan(const T* logits) const {
    for (int64_t k = 0; k < c.classes; ++k) {
      const A x = static_cast<A>(logits[k * c.class_stride]);
      if (x != x) return true;
    }
    return false;
  }

  bool probable_class_is_best(const T* logits, const T* target, A max) const {
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
                load(z + k, count), kSoft ? load(t_block + k, count) : V(0), weight ? load(weight + i + k, count) : V(1), V(max),
                V(log_sum));
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
    const bool used = counts(row), labelled = !kSoft && used;
    const A z_label = labelled ? logit(logits, label(row)) : A(0), weight_label = labelled ? class_weight(label(row)) : A(0);
    const auto closed = close(total, used, z_label, weight_label, max, log_sum);
    static_cast<A*>(c.max)[row] = max;
    static_cast<A*>(c.log_sum)[row] = log_sum;
    static_cast<A*>(c.slope)[row] = closed.slope;
    static_cast<A*>(c.row_loss)[row] = closed.value;
    if (c.entropy) static_cast<A*>(c.entropy)[row] = log_sum - closed.entropy / static_cast<A>(sum);
    if (c.accuracy) set_accuracy(row, logits, target, max, static_cast<A>(sum));
  }

  // What the label of each row of a tile selects: whether the row counts, and its class as a number to compare with (-1: none).
  struct Labels {
    alignas(64) A used[kMaxLanes], index[kMaxLanes];
    Labels(const Row& row, int64_t first, int64_t lanes) {
      for (int64_t j = 0; j < lanes; ++j) {
        const bool in_use = row.counts(first + j);
        used[j] = in_use;
        index[j] = !kSoft && in_use ? static_cast<A>(row.label(first + j)) : A(-1);
      }
    }
    auto mask(int64_t j, int64_t n) const { return less(V(0), load(used + j, n)); }
  };

  // Strided class: a tile of lanes neighbouring rows, swept class by class. `scratch` takes the logits of the tile on the first
  // sweep: where they lie in the input, a power of two apart, they fall on each other in the caches. Null where they do not fit.
  void forward_tile(int64_t outer, int64_t first, int64_t lanes, A* scratch) const {
    alignas(64) A z_block[kMaxLanes], t_block[kMaxLanes];
    const T* logits = at(outer, first);
    const T* target = kSoft ? probabilities(outer, first) : nullptr;
    const int64_t row = outer * c.inner + first, pitch = padded(lanes);
    A* const max = static_cast<A*>(c.max) + row;
    A* const log_sum = static_cast<A*>(c.log_sum) + row;
    Sums sum;
    const auto class_logits = [&](int64_t k) {
      return scratch ? scratch + k * pitch : staged(logits + k * c.class_stride, lanes, z_block, transform);
    };
    std::fill(max, max + lanes, F::kNormalise ? -kInf<A> : A(0));
    if constexpr (F::kNormalise) {
      for (int64_t k = 0; k < c.classes; ++k) {
        // Hardware prefetchers stop at a page, and classes lie pages apart.
        const T *from = logits + k * c.class_stride, *next = from + (k + 1 < c.classes ? c.class_stride : 0);
        each_part<T>(lanes, from, [&](V z, int64_t j, int64_t n) {
          __builtin_prefetch(next + j);
          if (!transform.identity()) z = transform.apply(z);
          if (scratch) store(scratch + k * pitch + j, z, n);
          store(max + j, larger(load(max + j, n), z), n);
        });
      }
      for (int64_t k = 0; k < c.classes; ++k) {
        const A* z = class_logits(k);
        each_vector<A>(lanes, [&](int64_t j, int64_t n) { sum.add(j, exp(load(z + j, n) - finite_shift(load(max + j, n))), n); });
        if (sum.full(k)) sum.flush(lanes);
      }
      sum.flush(lanes);
      each_vector<A>(lanes, [&](int64_t j, int64_t n) { store(log_sum + j, log(load(sum.total + j, n)), n); });
    } else {
      std::fill(log_sum, log_sum + lanes, A(0));
    }
    const Labels labels(*this, row, lanes);
    alignas(64) A z_label[kMaxLanes], weight_label[kMaxLanes];
    if constexpr (!kSoft) {
      for (int64_t j = 0; j < lanes; ++j) {
        const int64_t y = labels.index[j] < 0 ? -1 : label(row + j);
        z_label[j] = y < 0 ? A(0) : F::kNormalise && scratch ? scratch[y * pitch + j] : logit(logits + j, y);
        weight_label[j] = y < 0 ? A(0) : class_weight(y);
      }
    }
    const auto finish = [&](int64_t j, int64_t n, const Parts<V>& sums) {
      const V z = load(z_label + j, n), w = load(weight_label + j, n);
      const auto closed = close(sums, labels.mask(j, n), z, w, load(max + j, n), load(log_sum + j, n));
      store(static_cast<A*>(c.slope) + row + j, closed.slope, n);
      store(static_cast<A*>(c.row_loss) + row + j, closed.value, n);
      if (c.entropy) store(static_cast<A*>(c.entropy) + row + j, load(log_sum + j, n) - closed.entropy / load(sum.total + j, n), n);
    };
    if (spread || c.entropy) {
      Sums value, slope, entropy;
      for (int64_t k = 0; k < c.classes; ++k) {
        const A* z = class_logits(k);
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
      each_vector<A>(lanes, [&](int64_t j, int64_t n) {
        finish(j, n, {load(value.total + j, n), load(slope.total + j, n), load(entropy.total + j, n)});
      });
    } else {
      each_vector<A>(lanes, [&](int64_t j, int64_t n) { finish(j, n, {}); });
    }
    if (c.accuracy) {
      for (int64_t j = 0; j < lanes; ++j) set_accuracy(row + j, logits + j, target + (kSoft ? j : 0), max[j], sum.total[j]);
    }
  }

  // What the gradient of one row needs: W is A, or V for neighbouring rows.
  template <class W>
  struct Coefficients {
    W max, log_sum, inverse_sum;
    W probability;     // times p_c
    W loss;            // upstream gradient of the row's loss
    W label;           // an index target's share, without smoothing
    W entropy, level;  // upstream gradient of the entropy, and the entropy
    static constexpr int kCount = 8;
  };

  // read(array) gives the entries of the rows; `used` says which of them count.
  template <class W, class Used, class Read>
  Coefficients<W> coefficients(Used used, const Read& read) const {
    Coefficients<W> k{read(c.max), read(c.log_sum), W(0), W(0), W(0), W(0), W(0), W(0)};
    k.inverse_sum = exp(W(0) - k.log_sum);
    if (c.grad_lse) k.probability = read(c.grad_lse);
    if (c.grad_loss) {
      // An ignored row's share is 0 even where the divisor is 0 and the upstream gradient over it is no number.
      k.loss = select(used, per_row ? read(c.grad_loss) : W(shared_loss), W(0));
      k.label = select(used, k.loss * read(c.slope), W(0));
      k.probability = k.probability - k.label;
      if (c.z_loss != 0) {
        k.probability = k.probability + select(used, k.loss * W(2 * c.z_loss) * (k.max + k.log_sum), W(0));
      }
    }
    if (c.grad_entropy) {
      k.entropy = read(c.grad_entropy);
      k.level = read(c.entropy);
    }
    return k;
  }

  // Gradient of the logits of one class. `direct` is an index target's share where it belongs to this class.
  template <class W>
  W gradient(W z, W probability, W weights, W direct, const Coefficients<W>& k) const {
    const W shifted = z - k.max;
    W result = direct, p(0);
    if constexpr (F::kNormalise) {
      p = exp(shifted) * k.inverse_sum;
      result = result + p * k.probability;
    }
    if (extras) {
      const W l = shifted - k.log_sum;
      if (spread) result = result + k.loss * share(probability, weights) * F::eval(l, c.params).derivative;
      if (c.grad_entropy) result = result - k.entropy * p * (larger(W(kTinyLog), l) + k.level);
      result = result * transform.derivative(z);
    }
    return result;
  }

  // A row without any upstream gradient is 0, whatever it holds.
  bool nothing(bool used, const Coefficients<A>& k) const { return !(c.grad_loss && used) && k.probability == 0 && k.entropy == 0; }

  T* grad_at(int64_t outer, int64_t inner) const { return static_cast<T*>(c.grad) + outer * c.grad_outer_stride + inner; }

  // The gradient of n logits at once. one(z, probability, j, count) gives that of the vector at element j.
  template <class One>
  void backward_sweep(const T* logits, const T* target, T* grad, int64_t n, const One& one) const {
    constexpr int64_t width = V::size();
    each_vector<T>(n, [&](int64_t i, int64_t count) {
      auto z = load_parts(logits + i, count);
      Parted<T> t{};
      if constexpr (kSoft) t = load_parts(target + i, count);
      for (int k = 0; k < kParts<T>; ++k) {
        if (kParts<T> > 1 && k * width >= count) break;
        if (extras) z[k] = transform.apply(z[k]);
        z[k] = one(z[k], t[k], i + k * width, std::min(width, count - k * width));
      }
      store_parts(grad + i, z, count);
    });
  }

  void backward_row(int64_t row) const {
    const T* logits = at(row, 0);
    T* grad = grad_at(row, 0);
    const bool used = counts(row);
    const auto k = coefficients<A>(used, [&](const void* array) { return static_cast<const A*>(array)[row]; });
    if (nothing(used, k)) {
      std::fill(grad, grad + c.classes, T(0));
      return;
    }
    const int64_t y = kSoft || !used ? -1 : label(row);
    const A z_label = y < 0 ? A(0) : logit(logits, y);  // read before an in-place gradient overwrites it
    const Coefficients<V> all{V(k.max), V(k.log_sum), V(k.inverse_sum), V(k.probability), V(k.loss), V(k.label), V(k.entropy), V(k.level)};
    backward_sweep(
        logits, kSoft ? probabilities(row, 0) : nullptr, grad, c.classes, [&](V z, V probability, int64_t j, int64_t n) {
          return gradient(z, probability, spread && weight ? load(weight + j, n) : V(1), V(0), all);
        });
    // Computed anew with the label's share, so that a 16-bit gradient is rounded once.
    if (y >= 0) grad[y] = static_cast<T>(gradient(z_label, A(1), class_weight(y), spread ? A(0) : k.label, k));
  }

  void backward_tile(int64_t outer, int64_t first, int64_t lanes) const {
    alignas(64) A fields[Coefficients<A>::kCount][kMaxLanes];
    const T* logits = at(outer, first);
    T* grad = grad_at(outer, first);
    const int64_t row = outer * c.inner + first;
    const Labels labels(*this, row, lanes);
    each_vector<A>(lanes, [&](int64_t j, int64_t n) {
      const auto k = coefficients<V>(labels.mask(j, n), [&](const void* array) { return load(static_cast<const A*>(array) + row + j, n); });
      int field = 0;
      for (const V& value : {k.max, k.log_sum, k.inverse_sum, k.probability, k.loss, k.label, k.entropy, k.level}) {
        store(fields[field++] + j, value, n);
      }
    });
    const auto lane = [&](int field, int64_t j, int64_t n) { return load(fields[field] + j, n); };
    for (int64_t k = 0; k < c.classes; ++k) {
      const V w(class_weight(k)), index{static_cast<A>(k)};
      const bool last = k + 1 == c.classes;
      const T* next = logits + (last ? k : k + 1) * c.class_stride;
      const T* next_grad = grad + (last ? k : k + 1) * c.grad_class_stride;
      backward_sweep(
          logits + k * c.class_stride, kSoft ? probabilities(outer, first) + k * c.target_class_stride : nullptr,
          grad + k * c.grad_class_stride, lanes, [&](V z, V probability, int64_t j, int64_t n) {
            const Coefficients<V> at{lane(0, j, n), lane(1, j, n), lane(2, j, n), lane(3, j, n),
                                     lane(4, j, n), lane(5, j, n), lane(6, j, n), lane(7, j, n)};
            __builtin_prefetch(next + j);
            __builtin_prefetch(next_grad + j, 1);
            V direct(0);
            if constexpr (!kSoft) {
              const auto mine = equal(load(labels.index + j, n), index);
              if (spread) probability = select(mine, V(1), V(0));
              else direct = select(mine, at.label, V(0));
            }
            return gradient(z, probability, w, direct, at);
          });
    }
    // A row without any upstream gradient is 0 whatever it holds; only where its statistics are no numbers has it become NaN.
    for (int64_t j = 0; j < lanes; ++j) {
      const A state = fields[0][j] + fields[1][j];
      if (state - state == 0) continue;
      if (nothing(labels.used[j] != 0, {fields[0][j], fields[1][j], A(0), fields[3][j], fields[4][j], fields[5][j], fields[6][j], A(0)})) {
        for (int64_t k = 0; k < c.classes; ++k) grad[k * c.grad_class_stride + j] = T(0);
      }
    }
  }

  template <bool kForward>
  void run(int64_t begin, int64_t end) const {
    const bool rows = contiguous(c);
    const int64_t lanes = rows ? 1 : tile_lanes(c), tiles = (c.inner + lanes - 1) / lanes;
    std::unique_ptr<A[]> scratch;
    if (kForward && !rows && c.classes * padded(lanes) <= kTileElements) scratch.reset(new A[c.classes * padded(lanes)]);
    for (int64_t item = begin; item < end; ++item) {
      if (rows) {
        if constexpr (kForward) forward_row(item);
        else backward_row(item);
      } else {
        const int64_t outer = item / tiles, first = item % tiles * lanes;
        const int64_t n = std::min(lanes, c.inner - first);
        if constexpr (kForward) forward_tile(outer, first, n, scratch.get());
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
  return with_type(scalar, [&](auto zero) { return run<kForward, decltype(zero)>(call, functor, soft, begin, end); });
}

}  // namespace

int64_t kernel::row_items(const RowCall& c) {
  if (contiguous(c)) return c.outer;
  const int64_t lanes = tile_lanes(c);
  return c.outer * ((c.inner + lanes - 1) / lanes);
}

void kernel::row_forward(const RowCall& call, Scalar scalar, int functor, bool soft, int64_t begin, int64_t end) {
  run<true>(call, scalar, functor, soft, begin, end);
}

void kernel::row_backward(const RowCall& call, Scalar scalar, int functor, bool soft, int64_t begin, int64_t end) {
  run<false>(call, scalar, functor, soft, begin, end);
}

}  // namespace fastloss
