// The pair engine on the CPU: what is done with a tile of scores while it is in cache. One source, compiled once for each instruction set.
//
// A tile has a row for each row of the other set and a lane for each own row, so what is kept for an own row is one lane of a vector.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <cmath>

namespace fastloss {
namespace {

template <class T>
using Lanes = Vectorized<T>;

// The own rows of one vector.
template <class T>
struct Own {
  using V = Lanes<T>;
  int64_t lane, count, row;  // the first lane, how many are in use, the row of the first

  V load_from(const void* from, T otherwise = T(0)) const {
    return from ? load(static_cast<const T*>(from) + row, count) : V(otherwise);
  }
};

template <class T>
inline T number(const void* from, int64_t i) {
  return from ? static_cast<const T*>(from)[i] : T(0);
}

// f(own) for every vector of lanes that are in use.
template <class T, class F>
inline void each_own(const PairTile& tile, const F& f) {
  constexpr int64_t width = Lanes<T>::size();
  for (int64_t lane = 0; lane < tile.own_count; lane += width) {
    f(Own<T>{lane, std::min(width, tile.own_count - lane), tile.own_begin + lane});
  }
}

// Which pairs of a term's mask the own rows of a vector are in, with row j of the other set.
template <class T>
struct Mask {
  using V = Lanes<T>;
  const PairCall& call;
  PairMask kind;
  Own<T> own;
  V label, place, valid;
  bool labels;

  Mask(const PairCall& call, PairMask kind, const Own<T>& own)
      : call(call), kind(kind), own(own), label(own.load_from(call.own_label)), place(V::arange(T(0), T(1))),
        valid(place < V(static_cast<T>(own.count))), labels(call.own_label && kind != PairMask::kAll) {}

  V at(int64_t j) const {
    V mask = valid;
    if (call.codes) {
      mask = mask & listed(j);
    } else if (labels) {
      const V other(number<T>(call.other_label, j));
      mask = mask & (kind == PairMask::kPositive ? label == other : label != other);
    }
    if (call.skips) {
      const int64_t lane = j - call.skip - own.row;
      if (lane >= 0 && lane < V::size()) mask = mask & (place != V(static_cast<T>(lane)));
    }
    return mask;
  }

  V listed(int64_t j) const {
    alignas(64) T bits[V::size()] = {};
    const uint8_t* codes = call.codes + own.row * call.codes_own_stride + j * call.codes_other_stride;
    const int wanted = kind == PairMask::kAll ? 3 : kind == PairMask::kPositive ? 1 : 2;
    for (int64_t i = 0; i < own.count; ++i) bits[i] = static_cast<T>((codes[i * call.codes_own_stride] & wanted) != 0);
    return V::loadu(bits) != V(T(0));
  }
};

// Whether a term is of pairs of equal labels and each own label is below or above all of the tile's: of labels in order, as classes have,
// most tiles are like that.
template <class T>
bool is_empty(const PairCall& call, const PairTerm& term, const PairTile& tile) {
  if (term.mask != PairMask::kPositive || call.codes || !call.own_label) return false;
  const T* own = static_cast<const T*>(call.own_label) + tile.own_begin;
  const T* other = static_cast<const T*>(call.other_label) + tile.other_begin;
  T least = kInf<T>, most = -kInf<T>;
  for (int64_t j = 0; j < tile.other_count; ++j) {  // NaN, which equals none, is neither
    least = other[j] < least ? other[j] : least;
    most = other[j] > most ? other[j] : most;
  }
  return std::none_of(own, own + tile.own_count, [&](T label) { return label >= least && label <= most; });
}

// A functor with the parameters of a term, at the own rows of a vector and any row of the other set.
template <class T, class F>
struct Functor {
  using V = Lanes<T>;
  V constants[kPairConstants];
  V own_param;
  const void* other_param;
  bool own_is_row;

  Functor(const PairTerm& term, const Own<T>& own)
      : own_param(own.load_from(term.own_param)), other_param(term.other_param), own_is_row(term.own_is_row) {
    for (int k = 0; k < kPairConstants; ++k) constants[k] = V(static_cast<T>(term.constants[k]));
  }

  PairValue<V> at(V score, int64_t j) const {
    const V other(number<T>(other_param, j));
    return own_is_row ? F::eval(score, own_param, other, constants) : F::eval(score, other, own_param, constants);
  }
};

template <class T>
inline Lanes<T> score_at(const PairTile& tile, int64_t lane, int64_t j) {
  return Lanes<T>::loadu(static_cast<const T*>(tile.scores) + j * tile.stride + lane);
}

// Products to scores.
template <class T>
void transform_tile(const PairCall& call, const PairTile& tile) {
  using V = Lanes<T>;
  if (call.scale == 1 && !call.own_bias && !call.other_bias && call.transform == PairTransform::kNone) return;
  const V scale(static_cast<T>(call.scale)), cap(static_cast<T>(call.cap));
  each_own<T>(tile, [&](const Own<T>& own) {
    const V bias = own.load_from(call.own_bias);
    for (int64_t j = 0; j < tile.other_count; ++j) {
      T* at = static_cast<T*>(tile.scores) + j * tile.stride + own.lane;
      const V x = scale * V::loadu(at) + bias + V(number<T>(call.other_bias, tile.other_begin + j));
      pair_transform(call.transform, x, cap).store(at);
    }
  });
}

// Adds exp(value - top) of more pairs to a sum with the same top, which may grow.
template <class T>
inline void add_exponentials(T& top, double& sum, T more_top, double more) {
  if (more_top == -kInf<T>) return;
  if (more_top > top || std::isnan(more_top)) {
    sum = (top == -kInf<T> ? 0.0 : sum * std::exp(static_cast<double>(top) - static_cast<double>(more_top))) + more;
    top = more_top;
  } else {
    sum += more * std::exp(static_cast<double>(more_top) - static_cast<double>(top));
  }
}

// A statistic of the own rows.
template <class T, class F>
void gather_own(const PairCall& call, const PairTerm& term, const PairTile& tile, const PairSums& sums) {
  using V = Lanes<T>;
  constexpr int64_t width = V::size();
  const V none(-kInf<T>);
  if (is_empty<T>(call, term, tile)) return;
  each_own<T>(tile, [&](const Own<T>& own) {
    const Functor<T, F> functor(term, own);
    const Mask<T> mask(call, term.mask, own);
    T* tops = static_cast<T*>(sums.top) + own.lane;
    V count(T(0)), total(T(0)), top = none, place(T(-1));
    if (term.reduce != PairReduce::kSum) {
      for (int64_t j = 0; j < tile.other_count; ++j) {
        const int64_t other = tile.other_begin + j;
        const V value = select(mask.at(other), functor.at(score_at<T>(tile, own.lane, j), other).value, none);
        if (term.reduce == PairReduce::kMax) place = select(less(top, value), V(static_cast<T>(other)), place);
        top = larger(top, value);
      }
    }
    if (term.reduce == PairReduce::kMax) {
      alignas(64) T best[width], index[width];
      top.store(best);
      place.store(index);
      for (int64_t i = 0; i < own.count; ++i) {
        if (index[i] < 0 || !(best[i] > tops[i])) continue;
        tops[i] = best[i];
        sums.count[own.lane + i] = static_cast<double>(index[i]);
      }
      return;
    }
    const V base = select(top == none, V(T(0)), top);
    for (int64_t j = 0; j < tile.other_count; ++j) {
      const int64_t other = tile.other_begin + j;
      V counts = mask.at(other);
      const V value = functor.at(score_at<T>(tile, own.lane, j), other).value;
      if (term.reduce == PairReduce::kSum) {
        total = total + select(counts, value, V(T(0)));
        if (F::kHinge) counts = counts & less(V(T(0)), value);
      } else {
        total = total + select(counts, exp(value - base), V(T(0)));
      }
      count = count + select(counts, V(T(1)), V(T(0)));
    }
    alignas(64) T more[width], counted[width], highest[width];
    total.store(more);
    count.store(counted);
    top.store(highest);
    for (int64_t i = 0; i < own.count; ++i) {
      sums.count[own.lane + i] += static_cast<double>(counted[i]);
      if (term.reduce == PairReduce::kSum) sums.sum[own.lane + i] += static_cast<double>(more[i]);
      else add_exponentials(tops[i], sums.sum[own.lane + i], highest[i], static_cast<double>(more[i]));
    }
  });
}

// A statistic of the rows of the other set.
template <class T, class F>
void gather_other(const PairCall& call, const PairTerm& term, const PairTile& tile, const PairSums& sums) {
  using V = Lanes<T>;
  constexpr int64_t most = kPairLanes / V::size();
  const V none(-kInf<T>);
  if (is_empty<T>(call, term, tile)) return;
  for (int64_t j = 0; j < tile.other_count; ++j) {
    const int64_t other = tile.other_begin + j;
    T& kept = static_cast<T*>(sums.top)[other];
    V values[most], inside[most], top = none;
    int64_t vectors = 0;
    each_own<T>(tile, [&](const Own<T>& own) {
      inside[vectors] = Mask<T>(call, term.mask, own).at(other);
      values[vectors] = select(inside[vectors], Functor<T, F>(term, own).at(score_at<T>(tile, own.lane, j), other).value, none);
      top = larger(top, values[vectors++]);
    });
    const T highest = horizontal(top, [](T a, T b) { return larger(a, b); });
    if (term.reduce == PairReduce::kMax) {
      if (!(highest > kept)) continue;
      alignas(64) T each[kPairLanes];
      for (int64_t k = 0; k < vectors; ++k) values[k].store(each + k * V::size());
      const auto first = std::find(each, each + tile.own_count, highest) - each;
      kept = highest;
      sums.count[other] = static_cast<double>(tile.own_begin + first);
      continue;
    }
    const V base(highest == -kInf<T> ? T(0) : highest);
    V total(T(0)), count(T(0));
    for (int64_t k = 0; k < vectors; ++k) {
      if (term.reduce == PairReduce::kSum) {
        total = total + select(inside[k], values[k], V(T(0)));
        if (F::kHinge) inside[k] = inside[k] & less(V(T(0)), values[k]);
      } else {
        total = total + select(inside[k], exp(values[k] - base), V(T(0)));
      }
      count = count + select(inside[k], V(T(1)), V(T(0)));
    }
    sums.count[other] += static_cast<double>(horizontal_sum(count));
    const double more = static_cast<double>(horizontal_sum(total));
    if (term.reduce == PairReduce::kSum) sums.sum[other] += more;
    else add_exponentials(kept, sums.sum[other], highest, more);
  }
}

// Adds what a term gives to the gradient of the scores and, if wanted, of the own rows' parameter.
template <class T, class F>
void differentiate(const PairCall& call, const PairTerm& term, const PairTile& tile, T* gradient, double* by_param) {
  using V = Lanes<T>;
  const bool exponential = term.reduce == PairReduce::kLogSumExp;
  if (is_empty<T>(call, term, tile)) return;
  each_own<T>(tile, [&](const Own<T>& own) {
    const Functor<T, F> functor(term, own);
    const Mask<T> mask(call, term.mask, own);
    // Of a statistic of no pair nothing is a part.
    const V own_value = term.own ? own.load_from(term.value) : V(T(0));
    const V own_grad = term.own ? select(own_value == V(-kInf<T>), V(T(0)), own.load_from(term.grad)) : V(T(0));
    V sum(T(0));
    for (int64_t j = 0; j < tile.other_count; ++j) {
      const int64_t other = tile.other_begin + j;
      const auto at = functor.at(score_at<T>(tile, own.lane, j), other);
      V weight = own_grad, value = own_value;
      if (!term.own) {
        const T known = exponential ? number<T>(term.value, other) : T(0);
        value = V(known);
        weight = V(known == -kInf<T> ? T(0) : number<T>(term.grad, other));
      }
      if (exponential) weight = weight * exp(at.value - value);
      weight = select(mask.at(other), weight, V(T(0)));
      T* to = gradient + j * kPairLanes + own.lane;
      (V::loadu(to) + weight * at.by_score).store(to);
      if (by_param) sum = sum + weight * (term.own_is_row ? at.by_row : at.by_column);
    }
    if (by_param) {
      alignas(64) T lanes[V::size()];
      sum.store(lanes);
      for (int64_t i = 0; i < own.count; ++i) by_param[own.lane + i] += static_cast<double>(lanes[i]);
    }
  });
}

// visit(functor) with the functor of a term.
template <class Visit>
inline void with_functor(int functor, const Visit& visit) {
  int index = 0;
#define FASTLOSS_VISIT(stem, type) \
  if (functor == index++) return visit(type{});
  FASTLOSS_PAIR(FASTLOSS_VISIT)
#undef FASTLOSS_VISIT
}

template <class T>
void forward_tile(const PairCall& call, const PairTile& tile, const PairSums* sums) {
  transform_tile<T>(call, tile);
  for (int k = 0; k < call.terms; ++k) {
    with_functor(call.term[k].functor, [&](auto functor) {
      if (call.term[k].own) gather_own<T, decltype(functor)>(call, call.term[k], tile, sums[k]);
      else gather_other<T, decltype(functor)>(call, call.term[k], tile, sums[k]);
    });
  }
}

template <class T>
void backward_tile(const PairCall& call, const PairTile& tile, T* gradient, const PairGradients& gradients) {
  using V = Lanes<T>;
  if (!tile.finished) transform_tile<T>(call, tile);
  std::fill(gradient, gradient + tile.other_count * kPairLanes, T(0));
  for (int k = 0; k < call.terms; ++k) {
    if (!call.term[k].grad) continue;
    with_functor(call.term[k].functor, [&](auto functor) {
      differentiate<T, decltype(functor)>(call, call.term[k], tile, gradient, gradients.own_param[k]);
    });
  }
  const V cap(static_cast<T>(call.cap));
  T* const scores = static_cast<T*>(tile.scores);
  for (int64_t lane = 0; lane < kPairLanes; lane += V::size()) {
    V sum(T(0));
    for (int64_t j = 0; j < tile.other_count; ++j) {
      T *at = scores + j * tile.stride + lane, *by = gradient + j * kPairLanes + lane;
      V g = V::loadu(by);
      if (call.transform != PairTransform::kNone) g = g * pair_transform_slope(call.transform, V::loadu(at), cap);
      sum = sum + g;
      g.store(at);
    }
    if (!gradients.own_bias) continue;
    alignas(64) T lanes[V::size()];
    sum.store(lanes);
    for (int64_t i = 0; i < V::size(); ++i) gradients.own_bias[lane + i] += static_cast<double>(lanes[i]);
  }
}

}  // namespace

namespace kernel {

void pair_forward(const PairCall& call, Scalar scalar, const PairTile& tile, const PairSums* sums) {
  if (scalar == Scalar::kDouble) forward_tile<double>(call, tile, sums);
  else forward_tile<float>(call, tile, sums);
}

void pair_backward(const PairCall& call, Scalar scalar, const PairTile& tile, void* gradient, const PairGradients& gradients) {
  if (scalar == Scalar::kDouble) backward_tile<double>(call, tile, static_cast<double*>(gradient), gradients);
  else backward_tile<float>(call, tile, static_cast<float*>(gradient), gradients);
}

void pair_turn(Scalar scalar, const void* from, int64_t rows, int64_t columns, int64_t from_stride, void* to, int64_t to_stride) {
  const auto turn = [&](auto zero) {
    using T = decltype(zero);
    at::vec::transpose_mxn<T>(static_cast<const T*>(from), from_stride, static_cast<T*>(to), to_stride, static_cast<int>(rows),
                              static_cast<int>(columns));
  };
  if (scalar == Scalar::kDouble) turn(double{});
  else turn(float{});
}

void pair_round(const float* from, int64_t rows, int64_t columns, int64_t count, void* to, int64_t to_stride) {
  using V = Vectorized<at::BFloat16>;
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = from + row * columns;
    at::BFloat16* out = static_cast<at::BFloat16*>(to) + row * to_stride;
    for (int64_t i = 0; i < count; i += V::size()) {
      at::vec::convert_from_float<at::BFloat16>(Lanes<float>::loadu(in + i), Lanes<float>::loadu(in + i + V::size() / 2)).store(out + i);
    }
    std::fill(out + count, out + columns, at::BFloat16(0));
  }
}

}  // namespace kernel
}  // namespace fastloss
