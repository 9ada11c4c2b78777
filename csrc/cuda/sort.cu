// The sort engine on CUDA devices: the kernels before and after torch's sort. fastloss/sort.py calls them in turn.
//
// In the sweeps over scores a thread takes one element through all channels, so that a warp reads neighbours; after the sort a thread
// takes a few ranks in a row, and a block leaves its part of each sum: the same bits from run to run.
#include "../sort.h"
#include "kernels.h"
#include "launch.h"

namespace fastloss {
namespace {

constexpr int kRanks = 4;  // of a thread

template <class T>
struct Element {
  using A = AccOf<T>;
  int64_t image, place;  // of the element in its image
  const T* scores;       // of its first channel

  __device__ Element(const SortCall& c, int64_t element) {
    if (((element | c.inner) >> 32) == 0) {  // the 64-bit division costs as much as a few channels
      image = static_cast<uint32_t>(element) / static_cast<uint32_t>(c.inner);
    } else {
      image = element / c.inner;
    }
    place = element - image * c.inner;
    scores = static_cast<const T*>(c.input) + image * c.image_stride + place;
  }
  __device__ A score(const SortCall& c, int64_t channel) const { return widen(scores[channel * c.channel_stride]); }
};

// A score, or its part of the softmax.
template <class F, class T>
__device__ __forceinline__ AccOf<T> prepared(const SortCall& c, const Element<T>& at, int64_t channel, AccOf<T> top, AccOf<T> inverse) {
  const AccOf<T> score = at.score(c, channel);
  if constexpr (F::kNormalise) return exp(score - top) * inverse;
  else return score;
}

// visit(element) for all that are this thread's.
template <class Visit>
__device__ __forceinline__ void each_element(int64_t elements, Visit visit) {
#pragma unroll 1
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += int64_t(gridDim.x) * blockDim.x) visit(i);
}

template <class T>
__global__ void __launch_bounds__(kThreads) sort_statistics_kernel(const SortCall c) {
  using A = AccOf<T>;
  const int64_t elements = c.images * c.inner;
  A* const stats = static_cast<A*>(c.stats);
  each_element(elements, [&](int64_t i) {
    const Element<T> at(c, i);
    A top = -INFINITY, sum = 0;
    for (int64_t channel = 0; channel < c.channels; ++channel) top = larger(top, at.score(c, channel));
    for (int64_t channel = 0; channel < c.channels; ++channel) sum += exp(at.score(c, channel) - top);
    stats[i] = top;
    stats[elements + i] = A(1) / sum;
  });
}

// keys: (count, size) errors of the rows from `first` on, below 0 where a label takes no part.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) sort_keys_kernel(const SortCall c, int64_t first, int64_t count, AccOf<T>* keys) {
  using A = AccOf<T>;
  const int64_t elements = c.images * c.inner;
  const A* const stats = static_cast<const A*>(c.stats);
  each_element(c.size, [&](int64_t j) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t group = (first + r) / c.rows, row = first + r - group * c.rows, i = group * c.size + j;
      const int64_t label = c.labels.at(i);
      const A top = F::kNormalise ? stats[i] : A(0), inverse = F::kNormalise ? stats[elements + i] : A(0);
      const A score = prepared<F, T>(c, Element<T>(c, i), c.channel_of(row), top, inverse);
      const A error = F::eval(score, label == c.class_of(row) ? A(1) : A(0)).value;
      keys[r * c.size + j] = c.labels.used(label) ? error : A(-1);
    }
  });
}

struct Count {
  int64_t value;
  __device__ void merge(const Count& other) { value += other.value; }
};

// The labels of the ranks that this thread has of a tile of a sorted row.
struct Ranks {
  int64_t row, rank;  // within the launch; of the first
  int64_t element[kRanks];
  bool inside[kRanks], foreground[kRanks];
  int64_t seen = 0;  // foreground among them

  __device__ Ranks(const SortCall& c, int64_t first, int64_t tiles, int64_t tile, const int64_t* order) {
    row = tile / tiles;
    rank = ((tile - row * tiles) * blockDim.x + threadIdx.x) * kRanks;
    const int64_t group = (first + row) / c.rows, k = c.class_of(first + row - group * c.rows);
#pragma unroll
    for (int i = 0; i < kRanks; ++i) {
      inside[i] = rank + i < c.size;
      element[i] = inside[i] ? order[row * c.size + rank + i] : 0;
      const int64_t label = c.labels.at(group * c.size + element[i]);
      foreground[i] = inside[i] && label == k && c.labels.used(label);
      seen += foreground[i];
    }
  }
};

// The sum over the threads of the block before this one.
__device__ __forceinline__ int64_t sum_before(int64_t value) {
  __shared__ int64_t warps[kThreads / kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  int64_t sum = value;
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const int64_t other = __shfl_sync(kWholeWarp, sum, lane >= distance ? lane - distance : lane);
    if (lane >= distance) sum += other;
  }
  if (lane == kLanes - 1) warps[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += warps[w];
  __syncthreads();  // before the next tile overwrites warps
  return sum - value;
}

// counts: (count, tiles), the foreground of each tile.
__global__ void __launch_bounds__(kThreads)
    sort_count_kernel(const SortCall c, int64_t first, int64_t count, int64_t tiles, const int64_t* order, int64_t* counts) {
  for (int64_t tile = blockIdx.x; tile < count * tiles; tile += gridDim.x) {
    const Count sum = reduce_block(Count{Ranks(c, first, tiles, tile, order).seen});
    if (threadIdx.x == 0) counts[tile] = sum.value;
  }
}

// before: (count, tiles), the foreground before each tile; total: (count,); partial: (count, tiles); slopes: those of the launch's rows.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sort_weigh_kernel(const SortCall c, int64_t first, int64_t count, int64_t tiles, const A* keys, const int64_t* order,
                      const int64_t* before, const int64_t* total, A* partial, A* slopes) {
  for (int64_t tile = blockIdx.x; tile < count * tiles; tile += gridDim.x) {
    const Ranks ranks(c, first, tiles, tile, order);
    int64_t seen = before[tile] + sum_before(ranks.seen);
    Sum<A> sum{0, 0};
#pragma unroll
    for (int i = 0; i < kRanks; ++i) {
      if (!ranks.inside[i]) continue;
      seen += ranks.foreground[i];
      const int64_t rank = ranks.rank + i;
      const A error = keys[ranks.row * c.size + rank];
      const bool counts = !(error <= A(0));
      const A weight = counts ? jaccard_weight<A>(ranks.foreground[i], total[ranks.row], seen, rank + 1 - seen) : A(0);
      if (counts) sum.add(error * weight);
      if (slopes) slopes[ranks.row * c.size + ranks.element[i]] = weight;
    }
    const Totals<A> all = reduce_block(Totals<A>{sum.total(), A(0)});
    if (threadIdx.x == 0) partial[tile] = all.loss;
  }
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 1) sort_backward_kernel(const SortCall c) {
  using A = AccOf<T>;
  const int64_t elements = c.images * c.inner;
  const A upstream = *static_cast<const A*>(c.grad_loss);
  each_element(elements, [&](int64_t i) {
    const Element<T> at(c, i);
    const int64_t group = c.groups == 1 ? 0 : at.image, label = c.labels.at(i);
    const bool used = c.labels.used(label);
    const A* const stats = static_cast<const A*>(c.stats);
    const A* const shares = static_cast<const A*>(c.shares) + group * c.rows;
    const A* const slopes = static_cast<const A*>(c.slopes) + group * c.rows * c.size + i - group * c.size;
    const A top = F::kNormalise ? stats[i] : A(0), inverse = F::kNormalise ? stats[elements + i] : A(0);
    // d loss / d score of a row
    const auto slope = [&](int64_t row, A score) {
      return F::eval(score, label == c.class_of(row) ? A(1) : A(0)).derivative * slopes[row * c.size] * shares[row];
    };
    A dot = 0;
    if constexpr (F::kNormalise) {
      for (int64_t row = 0; row < c.rows; ++row) {
        const A p = prepared<F, T>(c, at, c.channel_of(row), top, inverse);
        dot += p * slope(row, p);
      }
    }
    T* const grad = static_cast<T*>(c.grad) + at.image * c.channels * c.inner + at.place;
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      const int64_t row = c.row_of(channel);
      const A score = prepared<F, T>(c, at, channel, top, inverse);
      A g = row < 0 ? A(0) : slope(row, score);
      if constexpr (F::kNormalise) g = score * (g - dot);
      narrow(used ? upstream * g : A(0), grad[channel * c.inner]);
    }
  });
}

// run(a value of the input's type, a functor)
template <class Run>
void choose(const SortLaunch& launch, const Run& run) {
  const auto typed = [&](auto functor) {
    switch (launch.scalar) {
      case Scalar::kFloat: return run(float{}, functor);
      case Scalar::kDouble: return run(double{}, functor);
      case Scalar::kBFloat16: return run(__nv_bfloat16{}, functor);
      case Scalar::kHalf: return run(__half{}, functor);
    }
  };
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.errors, #name) == 0) return typed(Functor{});
  FASTLOSS_SORT(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no errors named ") + launch.errors);
}

int64_t tiles_of(const SortCall& call) { return (call.size + sort_tile() - 1) / sort_tile(); }

int64_t blocks_for(int64_t tiles) { return tiles < kMaxBlocks ? tiles : kMaxBlocks; }

}  // namespace

int64_t sort_tile() { return int64_t(kThreads) * kRanks; }

void sort_statistics(const SortCall& call, const SortLaunch& launch) {
  const Grid grid(call.images * call.inner);
  choose(launch, [&](auto scalar, auto) {
    start(sort_statistics_kernel<decltype(scalar)>, grid.blocks, grid.threads, launch.stream, call);
  });
}

void sort_keys(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, void* keys) {
  const Grid grid(call.size);
  choose(launch, [&](auto scalar, auto functor) {
    using T = decltype(scalar);
    start(sort_keys_kernel<T, decltype(functor)>, grid.blocks, grid.threads, launch.stream, call, first, count,
          static_cast<AccOf<T>*>(keys));
  });
}

void sort_count(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, const int64_t* order, int64_t* counts) {
  const int64_t tiles = tiles_of(call);
  start(sort_count_kernel, blocks_for(count * tiles), kThreads, launch.stream, call, first, count, tiles, order, counts);
}

void sort_weigh(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, const SortedRows& sorted, void* partial,
                void* slopes) {
  const int64_t tiles = tiles_of(call);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    start(sort_weigh_kernel<A>, blocks_for(count * tiles), kThreads, launch.stream, call, first, count, tiles,
          static_cast<const A*>(sorted.keys), sorted.order, sorted.before, sorted.total, static_cast<A*>(partial), static_cast<A*>(slopes));
  };
  if (launch.scalar == Scalar::kDouble) run(double{});
  else run(float{});
}

void sort_backward(const SortCall& call, const SortLaunch& launch) {
  const Grid grid(call.images * call.inner);
  choose(launch, [&](auto scalar, auto functor) {
    start(sort_backward_kernel<decltype(scalar), decltype(functor)>, grid.blocks, grid.threads, launch.stream, call);
  });
}

}  // namespace fastloss
