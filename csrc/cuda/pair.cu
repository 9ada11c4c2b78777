// The pair engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A block has a tile of its own rows and goes through tiles of the other rows. The threads of a block make a tile of scores, each a few of
// them, from features that pass through shared memory; then a few threads share each row of the tile, for its statistics or for its
// gradients with respect to the scores, which are multiplied with the other rows. Each thread adds up in the order of the other rows, and
// the threads of a row are added in theirs: the same bits from run to run.
#include "../pair.h"
#include "launch.h"

namespace fastloss {
namespace {

enum Functor : int {
#define FASTLOSS_NUMBER(name, Struct) k_##name,
  FASTLOSS_PAIR(FASTLOSS_NUMBER)
#undef FASTLOSS_NUMBER
};

// visit() the functor of that number.
template <class Visit>
__device__ __forceinline__ void with_functor(int functor, Visit visit) {
  switch (functor) {
#define FASTLOSS_CHOOSE(name, Struct) \
  case k_##name: return visit(Struct{});
    FASTLOSS_PAIR(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  }
}

// Threads make a square. Each computes kHeight x kWidth of a tile's numbers, and reads kEach of a row.
constexpr int kHeight = 2, kWidth = 4, kEach = kHeight * kWidth;
constexpr int kDepth = 16;  // features, or rows of gradients, in shared memory at once

template <class A>
struct Shape {
#if defined(__CUDACC__)
  static constexpr int kSide = sizeof(A) == 8 ? 8 : 16;  // doubles of a larger square would not fit
#else
  static constexpr int kSide = 8;
#endif
  static constexpr int kThreads = kSide * kSide, kOwn = kHeight * kSide, kOther = kWidth * kSide;
  static constexpr int kSharers = kThreads / kOwn;  // of a row of the tile
  // Steps from one row of shared memory to the next, not a multiple of 32 banks, and aligned to what a thread reads of a row.
  static constexpr int kOwnStep = kOwn + kHeight, kOtherStep = kOther + kWidth;
};

template <class A>
struct alignas(16) Tiles {
  A own[kDepth * Shape<A>::kOwnStep], other[kDepth * Shape<A>::kOtherStep];
  A scores[Shape<A>::kOther * Shape<A>::kOwnStep];  // or their gradients
};

// A term in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Term {
  int functor;
  PairReduce reduce;
  PairMask mask;
  bool own, own_is_row;
  A constants[kPairConstants];
  const A *own_param, *other_param, *grad;
  A *value, *count, *param_grad;
};

template <class A>
struct Settings {
  int64_t own, other, features;
  const void *own_set, *other_set;
  bool packed;  // 16-byte accesses to rows
  const A *own_bias, *other_bias, *own_label, *other_label;
  const uint8_t* codes;
  bool skips;
  int64_t skip;
  A scale, cap;
  PairTransform transform;
  void* grad;
  A *sums, *bias_grad;
  int terms;
  Term<A> term[2 * kMaxPairTerms];

  __device__ bool has_pair(const Term<A>& by, int64_t i, int64_t j) const {
    if (i >= own || j >= other || (skips && j - i == skip)) return false;
    if (codes) {
      const uint8_t code = by.own_is_row ? codes[j * own + i] : codes[i * other + j];
      return by.mask == PairMask::kAll ? code != 0 : (code & (by.mask == PairMask::kPositive ? 1 : 2)) != 0;
    }
    return by.mask == PairMask::kAll || own_label == nullptr || (own_label[i] == other_label[j]) == (by.mask == PairMask::kPositive);
  }
};

// Neighbours in memory, aligned to as many bytes, at most 16.
template <class E, int N>
struct alignas(sizeof(E) * N < 16 ? sizeof(E) * N : 16) Few {
  E values[N];
};

template <class E, int N>
__device__ __forceinline__ void take(const E* from, E (&to)[N]) {
  const Few<E, N> few = *reinterpret_cast<const Few<E, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = few.values[i];
}

template <class E, int N>
__device__ __forceinline__ void put(const E (&from)[N], E* to) {
  Few<E, N> few;
#pragma unroll
  for (int i = 0; i < N; ++i) few.values[i] = from[i];
  *reinterpret_cast<Few<E, N>*>(to) = few;
}

// A part of a matrix on its way to shared memory, zero where the matrix has ended.
template <class T, int kRows, int kColumns>
struct Slab {
  using A = AccOf<T>;
  static constexpr int kCount = Pack<T>::kCount, kAcross = kColumns / kCount, kPacks = kRows * kAcross;
  static constexpr int kThreads = Shape<A>::kThreads, kMine = (kPacks + kThreads - 1) / kThreads;
  Words<T> held[kMine];

  __device__ void load(const Settings<A>& s, const void* matrix, int64_t rows, int64_t first_row, int64_t first_column) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int pack = i * kThreads + threadIdx.x;
      const int64_t row = first_row + pack / kAcross, column = first_column + pack % kAcross * kCount;
      const T* from = static_cast<const T*>(matrix) + row * s.features + column;
      held[i] = Words<T>{};
      if (pack >= kPacks || row >= rows) continue;
      if (s.packed) {
        if (column < s.features) held[i].load(from);
        continue;
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (column + k < s.features) held[i].set(k, from[k]);
      }
    }
  }

  // visit(row, column, number) what this thread loaded.
  template <class Visit>
  __device__ void each(Visit visit) const {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int pack = i * kThreads + threadIdx.x;
      if (pack >= kPacks) continue;
#pragma unroll
      for (int k = 0; k < kCount; ++k) visit(pack / kAcross, pack % kAcross * kCount + k, widen(held[i].get(k)));
    }
  }
};

// Adds this thread's part of the product of kDepth rows of own and kDepth rows of other numbers.
template <class A>
__device__ __forceinline__ void multiply(const A* own, const A* other, A (&sum)[kHeight][kWidth]) {
  using S = Shape<A>;
  const A* mine = own + threadIdx.x / S::kSide * kHeight;
  const A* theirs = other + threadIdx.x % S::kSide * kWidth;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    A left[kHeight], right[kWidth];
    take(mine + k * S::kOwnStep, left);
    take(theirs + k * S::kOtherStep, right);
#pragma unroll
    for (int i = 0; i < kHeight; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[i][j] += left[i] * right[j];
    }
  }
}

// The scores of a tile; the same bits whichever of the two sets is the own one.
template <class T>
__device__ __forceinline__ void make_scores(const Settings<AccOf<T>>& s, int64_t first_own, int64_t first_other, Tiles<AccOf<T>>& tiles) {
  using A = AccOf<T>;
  using S = Shape<A>;
  A dot[kHeight][kWidth] = {};
  Slab<T, S::kOwn, kDepth> own;
  Slab<T, S::kOther, kDepth> other;
  own.load(s, s.own_set, s.own, first_own, 0);
  other.load(s, s.other_set, s.other, first_other, 0);
#pragma unroll 1
  for (int64_t feature = 0; feature == 0 || feature < s.features; feature += kDepth) {
    own.each([&](int row, int column, A x) { tiles.own[column * S::kOwnStep + row] = x; });
    other.each([&](int row, int column, A x) { tiles.other[column * S::kOtherStep + row] = x; });
    __syncthreads();
    if (feature + kDepth < s.features) {  // the next ones are on their way while these are multiplied
      own.load(s, s.own_set, s.own, first_own, feature + kDepth);
      other.load(s, s.other_set, s.other, first_other, feature + kDepth);
    }
    multiply(tiles.own, tiles.other, dot);
    __syncthreads();  // before the next ones overwrite them
  }
  const int row = threadIdx.x / S::kSide * kHeight, column = threadIdx.x % S::kSide * kWidth;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const int64_t at = first_other + column + j;
    const A other_bias = s.other_bias && at < s.other ? s.other_bias[at] : A(0);
#pragma unroll
    for (int i = 0; i < kHeight; ++i) {
      const A own_bias = s.own_bias && first_own + row + i < s.own ? s.own_bias[first_own + row + i] : A(0);
      const A score = s.scale * dot[i][j] + (own_bias + other_bias);
      tiles.scores[(column + j) * S::kOwnStep + row + i] = pair_transform(s.transform, score, s.cap);
    }
  }
  __syncthreads();
}

// What a thread sees of a tile: every so many-th score of a row.
template <class A>
struct Strip {
  using S = Shape<A>;
  int64_t own, first;  // the row, and the first of the other rows
  A* scores;

  __device__ Strip(int64_t first_own, int64_t first_other, Tiles<A>& tiles)
      : own(first_own + threadIdx.x / S::kSharers), first(first_other + threadIdx.x % S::kSharers),
        scores(tiles.scores + threadIdx.x % S::kSharers * S::kOwnStep + threadIdx.x / S::kSharers) {}

  __device__ int64_t other(int j) const { return first + j * S::kSharers; }
  __device__ A& score(int j) const { return scores[j * S::kSharers * S::kOwnStep]; }

  // A bit for each that is a pair of the term.
  __device__ unsigned pairs(const Settings<A>& s, const Term<A>& term) const {
    unsigned found = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) found |= static_cast<unsigned>(s.has_pair(term, own, other(j))) << j;
    return found;
  }

  // visit(j, what the functor gives) those of `pairs`.
  template <class Visit>
  __device__ void evaluate(const Term<A>& term, unsigned pairs, Visit visit) const {
    const A mine = pairs && term.own_param ? term.own_param[own] : A(0);
    with_functor(term.functor, [&](auto functor) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (!(pairs >> j & 1)) continue;
        const A theirs = term.other_param ? term.other_param[other(j)] : A(0);
        visit(j, functor.eval(score(j), term.own_is_row ? mine : theirs, term.own_is_row ? theirs : mine, term.constants));
      }
    });
  }
};

__device__ __forceinline__ bool is_hinge(int functor) {
  bool hinge = false;
  with_functor(functor, [&](auto chosen) { hinge = chosen.kHinge; });
  return hinge;
}

// The statistic of some of a row's pairs. Of a maximum, `count` is where the first one is; of a sum of exponentials, they are of the
// value less `max` if that is finite.
template <class A>
struct Running {
  A max, sum, count;

  __device__ static Running nothing(PairReduce reduce) { return {A(-INFINITY), A(0), reduce == PairReduce::kMax ? A(-1) : A(0)}; }

  __device__ static A shift(A max) { return max - max == A(0) ? max : A(0); }

  // The first of the largest, where NaN is larger than any number.
  __device__ void offer(A value, A at) {
    const bool above = value > max || (value != value && max == max), same = value == max || (value != value && max != max);
    if (at < A(0) || !(count < A(0) || above || (same && at < count))) return;
    max = value;
    count = at;
  }

  __device__ void add(const Term<A>& term, const Strip<A>& strip, const A (&values)[kEach], unsigned pairs) {
    const auto each = [&](auto visit) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (pairs >> j & 1) visit(values[j], j);
      }
    };
    A part = 0, seen = 0;
    switch (term.reduce) {
      case PairReduce::kMax: return each([&](A value, int j) { offer(value, static_cast<A>(strip.other(j))); });
      case PairReduce::kSum: {
        const bool positive = is_hinge(term.functor);
        each([&](A value, int) {
          part += value;
          seen += positive && !(value > A(0)) ? A(0) : A(1);
        });
        break;
      }
      case PairReduce::kLogSumExp: {
        A top = max;
        each([&](A value, int) { top = larger(top, value); });
        if (top != max) sum *= exp(max - shift(top));
        max = top;
        each([&](A value, int) {
          part += exp(value - shift(top));
          seen += A(1);
        });
      }
    }
    sum += part;
    count += seen;
  }

  __device__ void merge(PairReduce reduce, const Running& other) {
    if (reduce == PairReduce::kMax) return offer(other.max, other.count);
    const A top = larger(max, other.max);
    const bool scaled = reduce == PairReduce::kLogSumExp;
    sum = scaled ? sum * exp(max - shift(top)) + other.sum * exp(other.max - shift(top)) : sum + other.sum;
    max = top;
    count += other.count;
  }

  __device__ A value(PairReduce reduce) const {
    return reduce == PairReduce::kSum ? sum : reduce == PairReduce::kMax ? max : log(sum) + shift(max);
  }
};

template <class T>
__global__ void __launch_bounds__(Shape<AccOf<T>>::kThreads, 2) pair_forward_kernel(const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  using S = Shape<A>;
  __shared__ Tiles<A> tiles;
  __shared__ Running<A> running[kMaxPairTerms][S::kThreads];
  const int64_t first_own = int64_t(blockIdx.x) * S::kOwn;
#pragma unroll 1
  for (int k = 0; k < s.terms; ++k) running[k][threadIdx.x] = Running<A>::nothing(s.term[k].reduce);

#pragma unroll 1
  for (int64_t first_other = 0; first_other < s.other; first_other += S::kOther) {
    make_scores<T>(s, first_own, first_other, tiles);
    const Strip<A> strip(first_own, first_other, tiles);
#pragma unroll 1
    for (int k = 0; k < s.terms; ++k) {
      const unsigned pairs = strip.pairs(s, s.term[k]);
      A values[kEach];
      strip.evaluate(s.term[k], pairs, [&](int j, const PairValue<A>& found) { values[j] = found.value; });
      running[k][threadIdx.x].add(s.term[k], strip, values, pairs);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < s.terms * S::kOwn; i += S::kThreads) {
    const int k = i / S::kOwn, row = i % S::kOwn;
    if (first_own + row >= s.own) continue;
    const PairReduce reduce = s.term[k].reduce;
    Running<A> all = running[k][row * S::kSharers];
#pragma unroll 1
    for (int sharer = 1; sharer < S::kSharers; ++sharer) all.merge(reduce, running[k][row * S::kSharers + sharer]);
    s.term[k].value[first_own + row] = all.value(reduce);
    s.term[k].count[first_own + row] = all.count;
  }
}

// Makes of a tile's scores their gradients, and adds those of the bias and the parameters to the thread's own in `sums`.
template <class A>
__device__ __forceinline__ void weigh(const Settings<A>& s, const Strip<A>& strip, A (&sums)[2 * kMaxPairTerms + 1][Shape<A>::kThreads]) {
  A grads[kEach] = {};
#pragma unroll 1
  for (int k = 0; k < s.terms; ++k) {
    const Term<A>& term = s.term[k];
    const unsigned pairs = strip.pairs(s, term);
    A values[kEach], by_score[kEach], by_own[kEach], part = 0;
    strip.evaluate(term, pairs, [&](int j, const PairValue<A>& found) {
      values[j] = found.value;
      by_score[j] = found.by_score;
      by_own[j] = term.own_is_row ? found.by_row : found.by_column;
    });
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (!(pairs >> j & 1)) continue;
      const int64_t at = term.own ? strip.own : strip.other(j);
      A weight = term.grad[at];
      if (term.reduce == PairReduce::kLogSumExp) {
        const A all = term.value[at];
        weight = all == A(-INFINITY) ? A(0) : weight * exp(values[j] - all);
      }
      grads[j] += weight * by_score[j];
      part += weight * by_own[j];
    }
    sums[k + 1][threadIdx.x] += part;
  }
  A part = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const A grad = grads[j] * pair_transform_slope(s.transform, strip.score(j), s.cap);
    strip.score(j) = grad;
    part += grad;
  }
  sums[0][threadIdx.x] += part;
}

// Adds the product of a tile of gradients with its other rows to the gradient of the own rows. A thread always has the same of its
// numbers, which stay in s.sums until the last tile.
template <class T>
__device__ __forceinline__ void add_product(const Settings<AccOf<T>>& s, int64_t first_own, int64_t first_other, Tiles<AccOf<T>>& tiles) {
  using A = AccOf<T>;
  using S = Shape<A>;
  const int present = s.other - first_other < S::kOther ? static_cast<int>(s.other - first_other) : S::kOther;
  const bool last = first_other + S::kOther >= s.other;
#pragma unroll 1
  for (int64_t first_feature = 0; first_feature < s.features; first_feature += S::kOther) {
    A sum[kHeight][kWidth] = {};
    Slab<T, kDepth, S::kOther> other;
    other.load(s, s.other_set, s.other, first_other, first_feature);
#pragma unroll 1
    for (int row = 0; row < present; row += kDepth) {
      other.each([&](int at, int column, A x) { tiles.other[at * S::kOtherStep + column] = x; });
      __syncthreads();
      if (row + kDepth < present) other.load(s, s.other_set, s.other, first_other + row + kDepth, first_feature);
      multiply(tiles.scores + row * S::kOwnStep, tiles.other, sum);
      __syncthreads();  // before the next ones overwrite them, or the next scores these gradients
    }
    const int64_t feature = first_feature + threadIdx.x % S::kSide * kWidth;
    const bool whole = s.packed && feature + kWidth <= s.features;
#pragma unroll
    for (int i = 0; i < kHeight; ++i) {
      const int64_t row = first_own + threadIdx.x / S::kSide * kHeight + i, at = row * s.features + feature;
      if (row >= s.own) continue;
      A before[kWidth] = {};
      T rounded[kWidth];
      if (first_other > 0) {
        if (whole) take(s.sums + at, before);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (!whole && feature + j < s.features) before[j] = s.sums[at + j];
        }
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        before[j] += sum[i][j];
        narrow(s.scale * before[j], rounded[j]);
      }
      if (whole) {
        if (last) put(rounded, static_cast<T*>(s.grad) + at);
        else put(before, s.sums + at);
        continue;
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (feature + j >= s.features) continue;
        if (last) static_cast<T*>(s.grad)[at + j] = rounded[j];
        else s.sums[at + j] = before[j];
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(Shape<AccOf<T>>::kThreads, 2) pair_backward_kernel(const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  using S = Shape<A>;
  __shared__ Tiles<A> tiles;
  __shared__ A sums[2 * kMaxPairTerms + 1][S::kThreads];  // of the bias, and of the parameter of each term
  const int64_t first_own = int64_t(blockIdx.x) * S::kOwn;
#pragma unroll 1
  for (int k = 0; k <= s.terms; ++k) sums[k][threadIdx.x] = 0;
#pragma unroll 1
  for (int64_t first_other = 0; first_other < s.other; first_other += S::kOther) {
    make_scores<T>(s, first_own, first_other, tiles);
    weigh(s, Strip<A>(first_own, first_other, tiles), sums);
    __syncthreads();
    if (s.grad) add_product<T>(s, first_own, first_other, tiles);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < (s.terms + 1) * S::kOwn; i += S::kThreads) {
    const int k = i / S::kOwn, row = i % S::kOwn;
    A* to = k == 0 ? s.bias_grad : s.term[k - 1].param_grad;
    if (to == nullptr || first_own + row >= s.own) continue;
    A all = 0;
    for (int sharer = 0; sharer < S::kSharers; ++sharer) all += sums[k][row * S::kSharers + sharer];
    to[first_own + row] = all;
  }
}

bool aligned_to_packs(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
Settings<AccOf<T>> settings(const PairCall& call, const PairLaunch& launch) {
  using A = AccOf<T>;
  const auto numbers = [](const void* from) { return static_cast<const A*>(from); };
  Settings<A> s{};
  s.own = call.own;
  s.other = call.other;
  s.features = call.features;
  s.own_set = launch.own;
  s.other_set = launch.other;
  s.packed = call.features % Pack<T>::kCount == 0 && aligned_to_packs(launch.own) && aligned_to_packs(launch.other) &&
             aligned_to_packs(launch.grad) && aligned_to_packs(launch.sums);
  s.own_bias = numbers(call.own_bias);
  s.other_bias = numbers(call.other_bias);
  s.own_label = numbers(call.own_label);
  s.other_label = numbers(call.other_label);
  s.codes = call.codes;
  s.skips = call.skips;
  s.skip = call.skip;
  s.scale = static_cast<A>(call.scale);
  s.cap = static_cast<A>(call.cap);
  s.transform = call.transform;
  s.grad = launch.grad;
  s.sums = static_cast<A*>(launch.sums);
  s.bias_grad = static_cast<A*>(launch.bias_grad);
  s.terms = call.terms;
  for (int k = 0; k < call.terms; ++k) {
    const PairTerm& from = call.term[k];
    Term<A>& to = s.term[k];
    to = {from.functor, from.reduce, from.mask, from.own, from.own_is_row, {}, numbers(from.own_param), numbers(from.other_param),
          numbers(from.grad), static_cast<A*>(const_cast<void*>(from.value)), static_cast<A*>(launch.count[k]),
          static_cast<A*>(launch.param_grad[k])};
    for (int i = 0; i < kPairConstants; ++i) to.constants[i] = static_cast<A>(from.constants[i]);
  }
  return s;
}

// run(zero of the type in memory, number of blocks, threads of each)
template <class Run>
void each_tile(const PairCall& call, const PairLaunch& launch, Run run) {
  with_type(launch.scalar, [&](auto zero) {
    using S = Shape<AccOf<decltype(zero)>>;
    const int64_t tiles = (call.own + S::kOwn - 1) / S::kOwn;
    if (tiles > 0) run(zero, tiles, S::kThreads);
  });
}

}  // namespace

void pair_forward(const PairCall& call, const PairLaunch& launch) {
  each_tile(call, launch, [&](auto zero, int64_t blocks, int threads) {
    using T = decltype(zero);
    start(pair_forward_kernel<T>, blocks, threads, launch.stream, settings<T>(call, launch));
  });
}

void pair_backward(const PairCall& call, const PairLaunch& launch) {
  each_tile(call, launch, [&](auto zero, int64_t blocks, int threads) {
    using T = decltype(zero);
    start(pair_backward_kernel<T>, blocks, threads, launch.stream, settings<T>(call, launch));
  });
}

}  // namespace fastloss
