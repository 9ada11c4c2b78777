// The box engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A thread takes the boxes of 16 bytes: one, of 16-bit types two. Sums are partial sums of the blocks, added in a fixed order. Of a matrix
// of scores the threads of a warp take neighbouring columns, and hold what they add up in registers: the same bits from run to run.
#include "../box.h"
#include "kernels.h"
#include "launch.h"

namespace fastloss {
namespace {

constexpr int64_t kTileRows = 8;  // of a block's part of a matrix of scores

// Rows that a thread takes at once.
template <class T>
constexpr int kTogether = Pack<T>::kCount > 4 ? Pack<T>::kCount / 4 : 1;

// The parameters in the kernel's own precision, and how rows lie.
template <class A>
struct Settings {
  A params[2];
  bool first_packs, second_packs, packs;  // 16-byte accesses to the boxes of each set, and to the gradients
  A* partial;
};

template <class T>
__device__ __forceinline__ Box<AccOf<T>> box_at(const Boxes& boxes, int64_t row) {
  const T* from = static_cast<const T*>(boxes.data) + row * boxes.row_stride;
  const int64_t across = boxes.coordinate_stride;
  return {widen(from[0]), widen(from[across]), widen(from[2 * across]), widen(from[3 * across])};
}

// The boxes of kTogether rows; after the last row a box of zeros.
template <class T>
struct Group {
  static constexpr int kCount = kTogether<T>;
  static constexpr int kPacks = 4 * kCount / Pack<T>::kCount;

  int64_t row, rows;

  __device__ bool has(int i) const { return row + i < rows; }
  __device__ bool whole(bool packs) const { return packs && row + kCount <= rows; }

  __device__ void load(const Boxes& boxes, bool packs, Box<AccOf<T>> (&to)[kCount]) const {
    if (whole(packs)) {
      Pack<T> held[kPacks];
      const T* from = static_cast<const T*>(boxes.data) + 4 * row;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) load_pack(from + i * Pack<T>::kCount, held[i]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const auto value = [&](int c) { return widen(held[(4 * i + c) / Pack<T>::kCount].values[(4 * i + c) % Pack<T>::kCount]); };
        to[i] = {value(0), value(1), value(2), value(3)};
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = has(i) ? box_at<T>(boxes, row + i) : Box<AccOf<T>>{};
  }

  __device__ void store(void* grad, bool packs, const Box<AccOf<T>> (&from)[kCount]) const {
    if (grad == nullptr) return;
    T* to = static_cast<T*>(grad) + 4 * row;
    Pack<T> held[kPacks];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const AccOf<T> values[4] = {from[i].x1, from[i].y1, from[i].x2, from[i].y2};
#pragma unroll
      for (int c = 0; c < 4; ++c) narrow(values[c], held[(4 * i + c) / Pack<T>::kCount].values[(4 * i + c) % Pack<T>::kCount]);
    }
    if (whole(packs)) {
#pragma unroll
      for (int i = 0; i < kPacks; ++i) store_pack(to + i * Pack<T>::kCount, held[i]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 4 * kCount; ++i) {
      if (has(i / 4)) to[i] = held[i / Pack<T>::kCount].values[i % Pack<T>::kCount];
    }
  }
};

template <class A>
__device__ __forceinline__ Box<A> scaled(const Box<A>& box, A by) {
  return {box.x1 * by, box.y1 * by, box.x2 * by, box.y2 * by};
}

// visit() the rows that are this thread's.
template <class T, class Visit>
__device__ __forceinline__ void sweep(int64_t rows, Visit visit) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x * kTogether<T>;
#pragma unroll 1
  for (int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * kTogether<T>; row < rows; row += step) visit(Group<T>{row, rows});
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) box_forward_kernel(const BoxCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  Sum<A> loss_sum{0, 0};
  sweep<T>(call.rows, [&](const Group<T>& group) {
    Box<A> a[kTogether<T>], b[kTogether<T>];
    group.load(call.first, s.first_packs, a);
    group.load(call.second, s.second_packs, b);
#pragma unroll
    for (int i = 0; i < kTogether<T>; ++i) {
      if (!group.has(i)) continue;
      const A value = box_slopes<F>(a[i], b[i], s.params).value;
      if (s.partial) loss_sum.add(value);
      else static_cast<A*>(call.loss)[group.row + i] = value;
    }
  });
  if (s.partial) leave_partial(s.partial, loss_sum, Sum<A>{0, 0});
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) box_backward_kernel(const BoxCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const A* grads = static_cast<const A*>(call.grad_loss);
  const A divisor = call.reduction == static_cast<int>(Reduction::kMean) ? static_cast<A>(call.rows) : A(1);
  sweep<T>(call.rows, [&](const Group<T>& group) {
    Box<A> a[kTogether<T>], b[kTogether<T>];
    group.load(call.first, s.first_packs, a);
    group.load(call.second, s.second_packs, b);
#pragma unroll
    for (int i = 0; i < kTogether<T>; ++i) {
      const A g = group.has(i) ? grads[(group.row + i) * call.grad_stride] / divisor : A(0);
      const BoxSlopes<A> slopes = box_slopes<F>(a[i], b[i], s.params);
      a[i] = scaled(slopes.first, g);
      b[i] = scaled(slopes.second, g);
    }
    group.store(call.grad_first, s.packs, a);
    group.store(call.grad_second, s.packs, b);
  });
}

// What a block takes of a matrix: tiles of `height` rows and as many columns as it has threads. visit(first row, column of the thread).
template <class Visit>
__device__ __forceinline__ void each_tile(const BoxPairs& call, int64_t height, int64_t width, Visit visit) {
  const int64_t across = (call.columns + width - 1) / width, tiles = (call.rows + height - 1) / height * across;
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) visit(tile / across * height, tile % across * width);
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) box_scores_kernel(const BoxPairs call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  each_tile(call, kTileRows, blockDim.x, [&](int64_t first, int64_t column) {
    column += threadIdx.x;
    if (column >= call.columns) return;
    const Box<A> b = box_at<T>(call.second, column);
    const int64_t end = first + kTileRows < call.rows ? first + kTileRows : call.rows;
#pragma unroll 1
    for (int64_t row = first; row < end; ++row) {
      static_cast<A*>(call.score)[row * call.columns + column] = box_slopes<F>(box_at<T>(call.first, row), b, s.params).score;
    }
  });
}

// The gradient of one box, summed.
template <class A>
struct BoxSum {
  Sum<A> x1, y1, x2, y2;

  __device__ void add(const Box<A>& box) {
    x1.add(box.x1);
    y1.add(box.y1);
    x2.add(box.x2);
    y2.add(box.y2);
  }
  __device__ Box<A> total() const { return {x1.total(), y1.total(), x2.total(), y2.total()}; }
};

// A box that sums can be reduced as.
template <class A>
struct Corners {
  Box<A> box;

  __device__ void merge(const Corners& other) {
    box.x1 += other.box.x1;
    box.y1 += other.box.y1;
    box.x2 += other.box.x2;
    box.y2 += other.box.y2;
  }
};

template <class T>
__device__ __forceinline__ void write_box(void* grad, int64_t row, const Box<AccOf<T>>& box) {
  T* to = static_cast<T*>(grad) + 4 * row;
  narrow(box.x1, to[0]);
  narrow(box.y1, to[1]);
  narrow(box.x2, to[2]);
  narrow(box.y2, to[3]);
}

// Slopes are of losses: scores have the opposite ones. A block adds up a row.
template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) box_row_sums_kernel(const BoxPairs call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
#pragma unroll 1
  for (int64_t row = blockIdx.x; row < call.rows; row += gridDim.x) {
    const Box<A> a = box_at<T>(call.first, row);
    const A* grads = static_cast<const A*>(call.grad_score) + row * call.columns;
    BoxSum<A> sum{};
#pragma unroll 1
    for (int64_t column = threadIdx.x; column < call.columns; column += blockDim.x) {
      sum.add(scaled(box_slopes<F>(a, box_at<T>(call.second, column), s.params).first, -grads[column]));
    }
    const Corners<A> all = reduce_block(Corners<A>{sum.total()});
    if (threadIdx.x == 0) write_box<T>(call.grad_first, row, all.box);
  }
}

// A block adds up kLanes columns; each of its warps takes every so many-th row, and the first adds what the others found.
template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) box_column_sums_kernel(const BoxPairs call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  __shared__ Corners<A> parts[kThreads];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
#pragma unroll 1
  for (int64_t first = int64_t(blockIdx.x) * kLanes; first < call.columns; first += int64_t(gridDim.x) * kLanes) {
    const int64_t column = first + lane;
    BoxSum<A> sum{};
    if (column < call.columns) {
      const Box<A> b = box_at<T>(call.second, column);
      const A* grads = static_cast<const A*>(call.grad_score) + column;
#pragma unroll 1
      for (int64_t row = warp; row < call.rows; row += warps) {
        sum.add(scaled(box_slopes<F>(b, box_at<T>(call.first, row), s.params).first, -grads[row * call.columns]));
      }
    }
    parts[threadIdx.x] = Corners<A>{sum.total()};
    __syncthreads();
    if (warp == 0 && column < call.columns) {
      Corners<A> all = parts[lane];
      for (int other = 1; other < warps; ++other) all.merge(parts[other * kLanes + lane]);
      write_box<T>(call.grad_second, column, all.box);
    }
    __syncthreads();  // before the next columns overwrite parts
  }
}

bool aligned_to_packs(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool in_packs(const Boxes& boxes) { return boxes.row_stride == 4 && boxes.coordinate_stride == 1 && aligned_to_packs(boxes.data); }

template <class A, class Call>
Settings<A> settings(const Call& call, const BoxLaunch& launch) {
  Settings<A> s{{}, in_packs(call.first), in_packs(call.second), aligned_to_packs(call.grad_first) && aligned_to_packs(call.grad_second),
                static_cast<A*>(launch.partial)};
  for (int i = 0; i < 2; ++i) s.params[i] = static_cast<A>(call.params[i]);
  return s;
}

template <class T, class F>
void forward(const BoxCall& call, const BoxLaunch& launch) {
  using A = AccOf<T>;
  const auto s = settings<A>(call, launch);
  const Grid grid((call.rows + kTogether<T> - 1) / kTogether<T>);
  start(box_forward_kernel<T, F>, grid.blocks, grid.threads, launch.stream, call, s);
  if (s.partial == nullptr) return;
  const int64_t counted = call.rows > 0 ? call.rows : 1;  // a mean over nothing is 0
  start(finish_kernel<A>, 1, kThreads, launch.stream, static_cast<const A*>(s.partial), static_cast<int>(grid.blocks), call.reduction,
        counted, static_cast<A*>(nullptr), static_cast<A*>(call.loss));
}

template <class T, class F>
void backward(const BoxCall& call, const BoxLaunch& launch) {
  if (call.rows == 0) return;
  const Grid grid((call.rows + kTogether<T> - 1) / kTogether<T>);
  start(box_backward_kernel<T, F>, grid.blocks, grid.threads, launch.stream, call, settings<AccOf<T>>(call, launch));
}

int64_t bounded(int64_t blocks) { return blocks > kMaxBlocks ? kMaxBlocks : blocks; }

template <class T, class F>
void pairs_forward(const BoxPairsCall& call, const BoxLaunch& launch) {
  const int64_t tiles = (call.rows + kTileRows - 1) / kTileRows * ((call.columns + kThreads - 1) / kThreads);
  const auto s = settings<AccOf<T>>(call, launch);
  if (tiles > 0) start(box_scores_kernel<T, F>, bounded(tiles), kThreads, launch.stream, static_cast<const BoxPairs&>(call), s);
}

template <class T, class F>
void pairs_backward(const BoxPairsCall& call, const BoxLaunch& launch) {
  const auto s = settings<AccOf<T>>(call, launch);
  const BoxPairs& pairs = call;  // without the parameters, which are doubles: kernels get them in their own precision
  const int64_t tiles = (call.columns + kLanes - 1) / kLanes;
  if (call.grad_first && call.rows > 0) start(box_row_sums_kernel<T, F>, bounded(call.rows), kThreads, launch.stream, pairs, s);
  if (call.grad_second && tiles > 0) start(box_column_sums_kernel<T, F>, bounded(tiles), kThreads, launch.stream, pairs, s);
}

// run(zero of the type in memory, functor)
template <class Run>
void choose(const BoxLaunch& launch, const Run& run) {
  const auto typed = [&](auto f) {
    switch (launch.scalar) {
      case Scalar::kFloat: return run(float{}, f);
      case Scalar::kDouble: return run(double{}, f);
      case Scalar::kBFloat16: return run(__nv_bfloat16{}, f);
      case Scalar::kHalf: return run(__half{}, f);
    }
  };
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) return typed(Functor{});
  FASTLOSS_BOX(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no box loss named ") + launch.functor);
}

}  // namespace

void box_forward(const BoxCall& call, const BoxLaunch& launch) {
  choose(launch, [&](auto zero, auto f) { forward<decltype(zero), decltype(f)>(call, launch); });
}

void box_backward(const BoxCall& call, const BoxLaunch& launch) {
  choose(launch, [&](auto zero, auto f) { backward<decltype(zero), decltype(f)>(call, launch); });
}

void box_pairs_forward(const BoxPairsCall& call, const BoxLaunch& launch) {
  choose(launch, [&](auto zero, auto f) { pairs_forward<decltype(zero), decltype(f)>(call, launch); });
}

void box_pairs_backward(const BoxPairsCall& call, const BoxLaunch& launch) {
  choose(launch, [&](auto zero, auto f) { pairs_backward<decltype(zero), decltype(f)>(call, launch); });
}

}  // namespace fastloss
