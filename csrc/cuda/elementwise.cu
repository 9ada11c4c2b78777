// The element-wise engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A thread takes 16-byte packs of neighbouring elements where the layout of every operand allows, else a few single elements,
// whose places it finds by division. Each block leaves one partial sum of losses, and a last block adds these in a fixed order:
// the same bits from run to run. Results are contiguous.
#include "launch.h"

namespace fastloss {
namespace {

constexpr int kSingles = 4;  // elements that a thread has in flight where there are no packs

// Division of numbers below 2^31 by a constant: Granlund and Montgomery 1994, figure 4.1. Dividing costs ten times as much.
struct Divider {
  uint32_t divisor, factor, shift;

  explicit Divider(int64_t by) : divisor(by < 1 ? 1 : static_cast<uint32_t>(by)), shift(0) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - divisor)) / divisor + 1);
  }
  __device__ uint32_t divide(uint32_t x) const { return (static_cast<uint32_t>(uint64_t(x) * factor >> 32) + x) >> shift; }
};

// Where an element lies in each dimension.
struct Place {
  int64_t at[kMaxDims];
};

// The elements of a call in their order, and how they are dealt out.
struct Walk {
  int64_t sizes[kMaxDims];
  int64_t count;
  int64_t packs;  // of neighbours along the last dimension; elements after them are taken one by one
  bool flat;      // only the last dimension is longer than 1
  bool small;     // indices are below 2^31
  Divider last, middle;

  __device__ Place place(int64_t index) const {
    if (flat) return {{0, 0, index}};
    if (small) {
      const uint32_t i = static_cast<uint32_t>(index), line = last.divide(i), plane = middle.divide(line);
      return {{plane, line - plane * middle.divisor, i - line * last.divisor}};
    }
    const int64_t line = index / sizes[2], plane = line / sizes[1];
    return {{plane, line - plane * sizes[1], index - line * sizes[2]}};
  }
};

template <class T>
__device__ __forceinline__ const T* locate(const Operand& operand, const Place& place) {
  const T* data = static_cast<const T*>(operand.data);
  for (int d = 0; d < kMaxDims; ++d) data += place.at[d] * operand.strides[d];
  return data;
}

// What a thread takes at once. load() keeps numbers as they lie in memory, and get() makes values of them: any use beside the load
// would wait for it before the load of the next operand begins.

// A pack of neighbours along the last dimension, over which each operand steps by 1, from an aligned address, or by 0.
template <class T>
struct Neighbours {
  static constexpr int kCount = Pack<T>::kCount;
  struct Held {
    Words<T> words;
    T shared;  // where the operand steps by 0
  };

  int64_t first;
  Place place;

  __device__ Neighbours(const Walk& walk, int64_t first, int64_t) : first(first), place(walk.place(first)) {}

  __device__ bool has(int) const { return true; }

  __device__ Held load(const Operand& operand) const {
    Held held{};
    if (operand.data == nullptr) return held;
    const T* from = locate<T>(operand, place);
    if (operand.strides[kMaxDims - 1] != 0) {
      held.words.load(from);
    } else {
      held.shared = *from;
    }
    return held;
  }

  __device__ static void get(const Operand& operand, const Held& held, AccOf<T> absent, AccOf<T> (&values)[kCount]) {
    const bool each = operand.strides[kMaxDims - 1] != 0;
    const AccOf<T> shared = operand.data ? widen(held.shared) : absent;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = each ? widen(held.words.get(i)) : shared;
  }

  __device__ void store(T* to, const AccOf<T> (&values)[kCount]) const {
    Pack<T> pack;
    for (int i = 0; i < kCount; ++i) narrow(values[i], pack.values[i]);
    store_pack(to + first, pack);
  }
};

// Elements so far apart that neighbouring threads take neighbours. After the last element the first stands in.
template <class T>
struct Singles {
  static constexpr int kCount = kSingles;
  struct Held {
    T values[kCount];
  };

  int64_t first, step, end;
  Place places[kCount];

  __device__ Singles(const Walk& walk, int64_t first, int64_t step) : first(first), step(step), end(walk.count) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) places[i] = walk.place(has(i) ? first + i * step : first);
  }

  __device__ bool has(int i) const { return first + i * step < end; }

  __device__ Held load(const Operand& operand) const {
    Held held{};
    if (operand.data == nullptr) return held;
#pragma unroll
    for (int i = 0; i < kCount; ++i) held.values[i] = *locate<T>(operand, places[i]);
    return held;
  }

  __device__ static void get(const Operand& operand, const Held& held, AccOf<T> absent, AccOf<T> (&values)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = operand.data ? widen(held.values[i]) : absent;
  }

  __device__ void store(T* to, const AccOf<T> (&values)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (has(i)) narrow(values[i], to[first + i * step]);
    }
  }
};

// visit() all that this thread takes, as Neighbours and as Singles.
template <class T, class Visit>
__device__ __forceinline__ void sweep(const Walk& walk, Visit visit) {
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, threads = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 1
  for (int64_t pack = thread; pack < walk.packs; pack += threads) visit(Neighbours<T>(walk, pack * Pack<T>::kCount, 1));
#pragma unroll 1
  for (int64_t first = walk.packs * Pack<T>::kCount + thread; first < walk.count; first += kSingles * threads) {
    visit(Singles<T>(walk, first, threads));
  }
}

template <class T, class Chunk>
__device__ __forceinline__ void write(const Operand& result, const Chunk& chunk, const AccOf<T> (&values)[Chunk::kCount]) {
  if (result.data) chunk.store(static_cast<T*>(const_cast<void*>(result.data)), values);
}

// The parameters in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Settings {
  A params[kMaxParams];
  Walk walk;
  A* partial;
};

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const ElementwiseCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  Sum<A> loss_sum{0, 0}, weight_sum{0, 0};
  sweep<T>(s.walk, [&](const auto& chunk) {
    constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
    const auto inputs = chunk.load(call.input), targets = chunk.load(call.target), thirds = chunk.load(call.third),
               weights = chunk.load(call.weight);
    A x[kCount], t[kCount], z[kCount], w[kCount];
    chunk.get(call.input, inputs, A(0), x);
    chunk.get(call.target, targets, A(0), t);
    chunk.get(call.third, thirds, A(1), z);
    chunk.get(call.weight, weights, A(1), w);
    A values[kCount], loss = A(0), weight = A(0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = F::eval(x[i], t[i], z[i], s.params).value * w[i];
      loss += chunk.has(i) ? values[i] : A(0);
      weight += chunk.has(i) ? w[i] : A(0);
    }
    write<T>(call.loss, chunk, values);
    loss_sum.add(loss);
    weight_sum.add(weight);
  });
  if (s.partial) {
    leave_partial(s.partial, loss_sum, weight_sum);
  } else if (blockIdx.x == 0 && threadIdx.x == 0) {
    *static_cast<A*>(call.divisor) = A(1);
  }
}

// A block takes a row of sizes[1] x sizes[2] elements at a time.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) rows_kernel(const ElementwiseCall call, const Settings<AccOf<T>> s, T* losses) {
  using A = AccOf<T>;
  const auto value = [](const Operand& operand, const Place& place, A absent) {
    return operand.data ? widen(*locate<T>(operand, place)) : absent;
  };
  for (int64_t row = blockIdx.x; row < call.sizes[1]; row += gridDim.x) {
    Sum<A> sum{0, 0};
    for (int64_t column = threadIdx.x; column < call.sizes[2]; column += blockDim.x) {
      const Place place{{0, row, column}};
      const A x = value(call.input, place, A(0)), t = value(call.target, place, A(0)), z = value(call.third, place, A(1));
      sum.add(F::eval(x, t, z, s.params).value * value(call.weight, place, A(1)));
    }
    const Totals<A> all = reduce_block(Totals<A>{sum.total(), A(0)});
    if (threadIdx.x == 0) narrow(all.loss, losses[row]);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *static_cast<A*>(call.divisor) = A(1);
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const ElementwiseCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const A shared = call.grad_scalar ? *static_cast<const A*>(call.grad_scalar) / *static_cast<const A*>(call.divisor) : A(0);
  sweep<T>(s.walk, [&](const auto& chunk) {
    constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
    const auto inputs = chunk.load(call.input), targets = chunk.load(call.target), thirds = chunk.load(call.third),
               weights = chunk.load(call.weight), upstreams = chunk.load(call.grad_loss);
    A x[kCount], t[kCount], z[kCount], w[kCount], upstream[kCount];
    chunk.get(call.input, inputs, A(0), x);
    chunk.get(call.target, targets, A(0), t);
    chunk.get(call.third, thirds, A(1), z);
    chunk.get(call.weight, weights, A(1), w);
    chunk.get(call.grad_loss, upstreams, shared, upstream);
    A input[kCount], target[kCount], third[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const Partials<A> point = F::eval(x[i], t[i], z[i], s.params);
      const A g = upstream[i] * w[i];
      input[i] = g * point.input;
      target[i] = g * point.target;
      third[i] = g * point.third;
    }
    write<T>(call.grad_input, chunk, input);
    write<T>(call.grad_target, chunk, target);
    write<T>(call.grad_third, chunk, third);
  });
}

Walk walk(const ElementwiseCall& call, int64_t pack) {
  const int64_t* sizes = call.sizes;
  Walk walk{{sizes[0], sizes[1], sizes[2]}, sizes[0] * sizes[1] * sizes[2], 0, sizes[0] * sizes[1] == 1, false,
            Divider(sizes[2]), Divider(sizes[1])};
  walk.small = walk.count < int64_t(1) << 31;
  bool packs = walk.flat || sizes[2] % pack == 0;
  for (const Operand* operand : {&call.input, &call.target, &call.third, &call.weight, &call.grad_loss}) {
    packs = packs && in_packs(*operand, sizes, pack);
  }
  for (const Operand* result : {&call.loss, &call.grad_input, &call.grad_target, &call.grad_third}) {
    packs = packs && reinterpret_cast<uintptr_t>(result->data) % 16 == 0;
  }
  walk.packs = packs ? walk.count / pack : 0;
  return walk;
}

template <class T, class F>
void run(bool forward, const ElementwiseCall& call, const ElementwiseLaunch& launch) {
  using A = AccOf<T>;
  Settings<A> s{{}, walk(call, Pack<T>::kCount), static_cast<A*>(launch.partial)};
  for (int i = 0; i < kMaxParams; ++i) s.params[i] = static_cast<A>(call.params[i]);
  const auto reduction = static_cast<Reduction>(call.reduction);
  if (forward && reduction == Reduction::kRowSums) {
    const int threads = Grid(call.sizes[2]).threads;
    const int64_t blocks = call.sizes[1] < 1 ? 1 : call.sizes[1] < kMaxBlocks ? call.sizes[1] : kMaxBlocks;
    return start(rows_kernel<T, F>, blocks, threads, launch.stream, call, s, static_cast<T*>(launch.loss));
  }
  const Grid grid(s.walk.packs > 0 ? s.walk.packs : (s.walk.count + kSingles - 1) / kSingles);
  start(forward ? forward_kernel<T, F> : backward_kernel<T, F>, grid.blocks, grid.threads, launch.stream, call, s);
  if (!forward || s.partial == nullptr) return;
  start(finish_kernel<T>, 1, kThreads, launch.stream, static_cast<const A*>(s.partial), static_cast<int>(grid.blocks), call.reduction,
        launch.count, static_cast<A*>(call.divisor), static_cast<T*>(launch.loss));
}

template <class F>
void choose(bool forward, const ElementwiseCall& call, const ElementwiseLaunch& launch) {
  with_type(launch.scalar, [&](auto zero) { run<decltype(zero), F>(forward, call, launch); });
}

void dispatch(bool forward, const ElementwiseCall& call, const ElementwiseLaunch& launch) {
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) return choose<Functor>(forward, call, launch);
  FASTLOSS_ELEMENTWISE(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no element-wise loss named ") + launch.functor);
}

}  // namespace

void elementwise_forward(const ElementwiseCall& call, const ElementwiseLaunch& launch) { dispatch(true, call, launch); }
void elementwise_backward(const ElementwiseCall& call, const ElementwiseLaunch& launch) { dispatch(false, call, launch); }

}  // namespace fastloss
