// The row engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A row belongs to a group of lanes: a warp or a block where classes are contiguous, one thread where neighbouring rows are
// (loads are then coalesced over the rows). Both are a Layout; the kernels are written once over it. Each block leaves one
// partial sum, which a last block adds in a fixed order: the same bits from run to run.
#include "kernels.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#else
#include <type_traits>

#include "host_simt.h"
#endif

namespace fastloss {
namespace {

#if defined(__CUDACC__)
constexpr int kThreads = 256;
constexpr int64_t kWarpPacks = 128;  // rows of up to this many 16-byte packs are swept by one warp
#else
constexpr int kThreads = 64;  // every thread is a fibre
constexpr int64_t kWarpPacks = 12;
#endif
constexpr int kLanes = 32;
constexpr int kStep = 8;  // classes that a thread of the strided layout has in flight
constexpr unsigned kWholeWarp = 0xffffffffu;

template <class T>
using AccOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
};

__device__ __forceinline__ bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
__device__ __forceinline__ void load_pack(const T* from, Pack<T>& to) {
#if defined(__CUDACC__)
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  memcpy(&to, &raw, 16);
#else
  simt::require_aligned(from, 16);
  std::memcpy(&to, from, 16);
#endif
}

template <class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& from) {
#if defined(__CUDACC__)
  uint4 raw;
  memcpy(&raw, &from, 16);
  *reinterpret_cast<uint4*>(to) = raw;
#else
  simt::require_aligned(to, 16);
  std::memcpy(to, &from, 16);
#endif
}

// The settings of a call in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Settings {
  A params[kMaxParams];
  A keep, spread;  // target distribution q = keep * target + spread
  A z_loss, softcap, inverse_softcap, logit_scale;
  int64_t rows;
  int lanes;  // that share a row
  A* partial;
};

// Compensated sum: the error does not grow with the number of terms.
template <class A>
struct Sum {
  A high, low;

  __device__ void add(A x) {
    const A sum = high + x;
    const A back = sum - high;
    low += (high - (sum - back)) + (x - back);
    high = sum;
  }
  // An infinite sum has a NaN for its error.
  __device__ A total() const { return low - low == A(0) ? high + low : high; }
};

// Running maximum and sum of exp(z - max). Minus infinity counts for nothing, also while nothing else was seen; NaN and plus
// infinity make the sum NaN.
template <class A>
struct Online {
  A max;
  Sum<A> sum;

  template <int N>
  __device__ void add(const A (&z)[N]) {
    A top = max;
    for (int i = 0; i < N; ++i) top = maximum(top, z[i]);
    const A shift = finite_shift(top);
    if (top != max) {
      const A shrink = exp(max - shift);
      sum.high *= shrink;
      sum.low *= shrink;
      max = top;
    }
    A part = A(0);
    for (int i = 0; i < N; ++i) part += exp(z[i] - shift);
    sum.add(part);
  }
  __device__ void merge(const Online& other) {
    const A top = maximum(max, other.max), shift = finite_shift(top);
    const A mine = exp(max - shift), its = exp(other.max - shift);
    sum = {sum.total() * mine + other.sum.total() * its, A(0)};
    max = top;
  }
  __device__ static A finite_shift(A top) { return top == A(-INFINITY) ? A(0) : top; }
};

// The first of the largest, where NaN is larger than any number.
template <class A>
struct Best {
  A value;
  int64_t index;

  __device__ void merge(const Best& other) {
    const bool larger = other.value > value || (other.value != other.value && value == value);
    const bool equal = other.value == value || (other.value != other.value && value != value);
    if (larger || (equal && other.index < index)) *this = other;
  }
};

template <class A>
struct Terms {
  A loss, slope, entropy;

  __device__ void merge(const Terms& other) {
    loss += other.loss;
    slope += other.slope;
    entropy += other.entropy;
  }
};

template <class S, class Shuffle>
__device__ __forceinline__ S shuffled(const S& value, Shuffle shuffle) {
  uint32_t words[sizeof(S) / 4];
  memcpy(words, &value, sizeof(S));
#pragma unroll
  for (uint32_t& word : words) word = shuffle(word);
  S result;
  memcpy(&result, words, sizeof(S));
  return result;
}

template <class S>
__device__ __forceinline__ S reduce_warp(S value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value.merge(shuffled(value, [&](uint32_t word) { return __shfl_xor_sync(kWholeWarp, word, distance); }));
  }
  // Lanes merged in different orders and may differ in the last bit.
  return shuffled(value, [](uint32_t word) { return __shfl_sync(kWholeWarp, word, 0); });
}

// Every thread of the block must come here, and all get the same value.
template <class S>
__device__ __forceinline__ S reduce_block(S value) {
  __shared__ S parts[kThreads / kLanes];
  value = reduce_warp(value);
  if (threadIdx.x % kLanes == 0) parts[threadIdx.x / kLanes] = value;
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / kLanes; ++warp) value.merge(parts[warp]);
  __syncthreads();  // before the next reduction overwrites parts
  return value;
}

// A few neighbouring classes of one row.
template <class A, int N>
struct Chunk {
  static constexpr int kCount = N;
  int64_t first;
  A values[N];
};

struct Contiguous {
  static constexpr bool kInner = false;
  int lane, lanes;

  __device__ explicit Contiguous(int lanes) : lane(threadIdx.x % lanes), lanes(lanes) {}

  template <class S>
  __device__ S reduce(S value) const {
    return lanes == kLanes ? reduce_warp(value) : reduce_block(value);
  }

  template <class T, class A, int N>
  __device__ static void load(const T* row, int64_t, int64_t first, A (&values)[N]) {
    if constexpr (N == Pack<T>::kCount) {
      if (aligned(row + first)) {
        Pack<T> pack;
        load_pack(row + first, pack);
        for (int i = 0; i < N; ++i) values[i] = widen(pack.values[i]);
        return;
      }
    }
    for (int i = 0; i < N; ++i) values[i] = widen(row[first + i]);
  }

  template <class T, class A, int N>
  __device__ static void store(T* row, int64_t, int64_t first, const A (&values)[N]) {
    if constexpr (N == Pack<T>::kCount) {
      if (aligned(row + first)) {
        Pack<T> pack;
        for (int i = 0; i < N; ++i) narrow(values[i], pack.values[i]);
        store_pack(row + first, pack);
        return;
      }
    }
    for (int i = 0; i < N; ++i) narrow(values[i], row[first + i]);
  }

  // visit(chunk) for all classes of the row that are this lane's; wanted(first, count) tells whether to read them.
  template <class T, class Wanted, class Visit>
  __device__ void sweep(const T* row, int64_t, int64_t classes, Wanted wanted, Visit visit) const {
    using A = AccOf<T>;
    constexpr int kCount = Pack<T>::kCount;
    const int64_t to_boundary = (16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / sizeof(T);
    const int64_t head = to_boundary < classes ? to_boundary : classes;
    const int64_t packs = (classes - head) / kCount, tail = head + packs * kCount;

    // The next pack is on its way while this one is worked on.
    Pack<T> next{};
    if (lane < packs && wanted(head + int64_t(lane) * kCount, kCount)) load_pack(row + head + int64_t(lane) * kCount, next);
#pragma unroll 1
    for (int64_t pack = lane; pack < packs; pack += lanes) {
      Chunk<A, kCount> chunk{head + pack * kCount, {}};
      for (int i = 0; i < kCount; ++i) chunk.values[i] = widen(next.values[i]);
      const int64_t ahead = chunk.first + int64_t(lanes) * kCount;
      if (ahead < tail && wanted(ahead, kCount)) load_pack(row + ahead, next);
      visit(chunk);
    }
    // Fewer than two packs of single classes before and after.
    const int64_t edge = lane < head ? lane : lane - head + tail;
    if (edge < classes) {
      Chunk<A, 1> chunk{edge, {}};
      if (wanted(edge, 1)) chunk.values[0] = widen(row[edge]);
      visit(chunk);
    }
  }
};

struct Strided {
  static constexpr bool kInner = true;
  static constexpr int lane = 0;

  __device__ explicit Strided(int) {}

  template <class S>
  __device__ S reduce(S value) const {
    return value;
  }

  template <class T, class A, int N>
  __device__ static void load(const T* row, int64_t stride, int64_t first, A (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = widen(row[(first + i) * stride]);
  }

  template <class T, class A, int N>
  __device__ static void store(T* row, int64_t stride, int64_t first, const A (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) narrow(values[i], row[(first + i) * stride]);
  }

  template <class T, class Wanted, class Visit>
  __device__ void sweep(const T* row, int64_t stride, int64_t classes, Wanted wanted, Visit visit) const {
    using A = AccOf<T>;
    int64_t first = 0;
#pragma unroll 1
    for (; first + kStep <= classes; first += kStep) {
      Chunk<A, kStep> chunk{first, {}};
      if (wanted(first, kStep)) load(row, stride, first, chunk.values);
      visit(chunk);
    }
#pragma unroll 1
    for (; first < classes; ++first) {
      Chunk<A, 1> chunk{first, {}};
      if (wanted(first, 1)) load(row, stride, first, chunk.values);
      visit(chunk);
    }
  }
};

__device__ __forceinline__ bool always(int64_t, int) { return true; }

// Where row r begins.
template <class Layout>
__device__ __forceinline__ int64_t row_offset(int64_t r, int64_t inner, int64_t outer_stride) {
  if constexpr (!Layout::kInner) return r * outer_stride;
  if (((r | inner) >> 32) == 0) {  // the 64-bit division costs as much as a row of a few classes
    const uint32_t outer = static_cast<uint32_t>(r) / static_cast<uint32_t>(inner);
    return outer * outer_stride + (r - int64_t(outer) * inner);
  }
  return r / inner * outer_stride + r % inner;
}

template <bool kPlain, class A>
__device__ __forceinline__ A transform(A x, const Settings<A>& s) {
  const A z = x * s.logit_scale;
  if constexpr (kPlain) return z;
  return s.softcap == A(0) ? z : s.softcap * tanh(z * s.inverse_softcap);
}

// kPlain: no softcap, no label smoothing, no entropy; hard targets.
template <class T, class F, bool kSoft, bool kPlain, class Layout>
__global__ void __launch_bounds__(kThreads) forward_kernel(const RowCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const Layout layout(s.lanes);
  const bool leader = layout.lane == 0;
  const int64_t groups = blockDim.x / s.lanes;
  const A* weight = static_cast<const A*>(call.weight);
  Sum<A> loss_sum{0, 0}, count_sum{0, 0};

  for (int64_t r = blockIdx.x * groups + threadIdx.x / s.lanes; r < s.rows; r += gridDim.x * groups) {
    const T* row = static_cast<const T*>(call.input) + row_offset<Layout>(r, call.inner, call.outer_stride);
    A max = A(0), log_sum = A(0);
    if (F::kNormalise || call.accuracy || (!kPlain && call.entropy)) {
      Online<A> online{A(-INFINITY), {0, 0}};
      layout.sweep(row, call.class_stride, call.classes, always, [&](auto& chunk) {
        for (A& z : chunk.values) z = transform<kPlain>(z, s);
        online.add(chunk.values);
      });
      online = layout.reduce(online);
      max = online.max;
      log_sum = log(online.sum.total());
    }
    const auto log_prob = [&](A z) { return F::kNormalise ? z - max - log_sum : z; };

    int64_t label = 0;
    bool counts = true, valid = true;
    const T* target_row = nullptr;
    if constexpr (kSoft) {
      target_row = static_cast<const T*>(call.target) + row_offset<Layout>(r, call.inner, call.target_outer_stride);
    } else {
      label = static_cast<const int64_t*>(call.target)[r];
      counts = label != call.ignore_index;
      valid = label >= 0 && label < call.classes;
    }

    Terms<A> terms{0, 0, 0};
    Best<A> best{A(-INFINITY), INT64_MAX};
    const bool everywhere = kSoft || s.spread != A(0);
    if (!kPlain && (everywhere || call.entropy)) {
      layout.sweep(row, call.class_stride, call.classes, always, [&](auto& chunk) {
        constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
        A target[kCount] = {};
        if constexpr (kSoft) layout.load(target_row, call.target_class_stride, chunk.first, target);
        for (int i = 0; i < kCount; ++i) {
          const int64_t c = chunk.first + i;
          const A z = transform<kPlain>(chunk.values[i], s);
          if (everywhere) {
            const Slope<A> point = F::eval(log_prob(z), s.params);
            const A share = (kSoft ? s.keep * target[i] + s.spread : s.spread) * (weight ? weight[c] : A(1));
            terms.loss += share * point.value;
            terms.slope += share * point.derivative;
          }
          if (call.entropy) {
            const A l = z - max - log_sum;
            terms.entropy -= exp(l) * maximum(A(-1e4), l);
          }
          if constexpr (kSoft) best.merge({target[i], c});
        }
      });
      terms = layout.reduce(terms);
      if (kSoft && call.accuracy) best = layout.reduce(best);
    }
    if (!leader) continue;

    A count = counts ? A(1) : A(0), target_logit = A(NAN);
    if constexpr (kSoft) {
      if (call.accuracy && best.index < call.classes) {
        target_logit = transform<kPlain>(widen(row[best.index * call.class_stride]), s);
      }
    } else if (!counts) {
      terms.loss = terms.slope = A(0);
    } else if (!valid) {
      terms.loss = terms.slope = A(NAN);  // no class to read: the row poisons the loss and its gradient
    } else {
      target_logit = transform<kPlain>(widen(row[label * call.class_stride]), s);
      const Slope<A> point = F::eval(log_prob(target_logit), s.params);
      const A label_weight = weight ? weight[label] : A(1);
      terms.loss += s.keep * label_weight * point.value;
      terms.slope += s.keep * label_weight * point.derivative;
      if (call.reduction == static_cast<int>(Reduction::kMean)) count = label_weight;
    }
    if (counts && s.z_loss != A(0)) terms.loss += s.z_loss * (max + log_sum) * (max + log_sum);

    static_cast<A*>(call.max)[r] = F::kNormalise ? max : A(0);
    static_cast<A*>(call.log_sum)[r] = F::kNormalise ? log_sum : A(0);
    static_cast<A*>(call.slope)[r] = terms.slope;
    if (!kPlain && call.entropy) static_cast<A*>(call.entropy)[r] = terms.entropy;
    if (call.accuracy) static_cast<A*>(call.accuracy)[r] = counts && target_logit >= max && log_sum == log_sum ? A(1) : A(0);
    if (call.row_loss) static_cast<A*>(call.row_loss)[r] = terms.loss;
    loss_sum.add(terms.loss);
    count_sum.add(count);
  }

  const Terms<A> block = reduce_block(Terms<A>{loss_sum.total(), count_sum.total(), 0});
  if (threadIdx.x == 0) {
    s.partial[2 * blockIdx.x] = block.loss;
    s.partial[2 * blockIdx.x + 1] = block.slope;
  }
}

// One block: adds the partial sums of `blocks` blocks, and divides.
template <class A, class L>
__global__ void __launch_bounds__(kThreads) finish_kernel(const A* partial, int blocks, int reduction, bool zero_empty, A* divisor, L* loss) {
  Sum<A> loss_sum{0, 0}, count_sum{0, 0};
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) {
    loss_sum.add(partial[2 * i]);
    count_sum.add(partial[2 * i + 1]);
  }
  const Terms<A> all = reduce_block(Terms<A>{loss_sum.total(), count_sum.total(), 0});
  if (threadIdx.x != 0) return;
  const bool mean = reduction == static_cast<int>(Reduction::kMean) || reduction == static_cast<int>(Reduction::kRowMean);
  const A by = !mean || (zero_empty && all.slope == A(0)) ? A(1) : all.slope;
  *divisor = by;
  if (loss) narrow(AccOf<L>(all.loss / by), *loss);
}

template <class T, class F, bool kSoft, bool kPlain, class Layout>
__global__ void __launch_bounds__(kThreads) backward_kernel(const RowCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const Layout layout(s.lanes);
  const int64_t groups = blockDim.x / s.lanes;
  const A* weight = static_cast<const A*>(call.weight);
  const A* grad_loss = static_cast<const A*>(call.grad_loss);
  const bool each = call.reduction == static_cast<int>(Reduction::kNone);
  const bool everywhere = kSoft || (!kPlain && s.spread != A(0));

  for (int64_t r = blockIdx.x * groups + threadIdx.x / s.lanes; r < s.rows; r += gridDim.x * groups) {
    const T* row = static_cast<const T*>(call.input) + row_offset<Layout>(r, call.inner, call.outer_stride);
    T* grad_row = static_cast<T*>(call.grad) + row_offset<Layout>(r, call.inner, call.grad_outer_stride);
    const A max = static_cast<const A*>(call.max)[r], log_sum = static_cast<const A*>(call.log_sum)[r];

    int64_t label = -1;
    bool counts = grad_loss != nullptr, invalid = false;
    const T* target_row = nullptr;
    if constexpr (kSoft) {
      target_row = static_cast<const T*>(call.target) + row_offset<Layout>(r, call.inner, call.target_outer_stride);
    } else {
      label = static_cast<const int64_t*>(call.target)[r];
      counts = counts && label != call.ignore_index;
      invalid = counts && (label < 0 || label >= call.classes);
      if (!counts) label = -1;
    }
    // An ignored row never sees the upstream gradient, which may be infinite where every row is ignored.
    A g = A(0), pull = A(0);  // dz_c = p_c * pull + what the target and the entropy add
    if (counts) {
      g = each ? grad_loss[r] : grad_loss[0] / *static_cast<const A*>(call.divisor);
      pull = -g * static_cast<const A*>(call.slope)[r];
      if (s.z_loss != A(0)) pull += A(2) * s.z_loss * (max + log_sum) * g;
    }
    if (call.grad_lse) pull += static_cast<const A*>(call.grad_lse)[r];
    const bool has_entropy = !kPlain && call.grad_entropy;
    const A grad_entropy = has_entropy ? static_cast<const A*>(call.grad_entropy)[r] : A(0);
    const A entropy = has_entropy ? static_cast<const A*>(call.entropy)[r] : A(0);
    const A at_label = !kSoft && label >= 0 && !invalid ? g * s.keep * (weight ? weight[label] : A(1)) : A(0);

    const bool any = counts || call.grad_lse || has_entropy;
    const bool all = any && (F::kNormalise || everywhere);
    const auto wanted = [&](int64_t first, int count) { return all || (first <= label && label < first + count); };
    layout.sweep(row, call.class_stride, call.classes, wanted, [&](auto& chunk) {
      constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
      A target[kCount] = {};
      if constexpr (kSoft) {
        if (counts) layout.load(target_row, call.target_class_stride, chunk.first, target);
      }
      A grads[kCount];
      for (int i = 0; i < kCount; ++i) {
        const int64_t c = chunk.first + i;
        const A z = transform<kPlain>(chunk.values[i], s);
        const A l = F::kNormalise ? z - max - log_sum : z;
        A dz = A(0);
        if (F::kNormalise && any) {
          const A p = exp(l);
          dz = p * pull;
          if (has_entropy) dz -= grad_entropy * p * (maximum(A(-1e4), l) + entropy);
        }
        if (counts && everywhere) {
          const A share = (kSoft ? s.keep * target[i] + s.spread : s.spread) * (weight ? weight[c] : A(1));
          dz += g * share * F::eval(l, s.params).derivative;
        }
        if (!kSoft && c == label) dz += at_label * F::eval(l, s.params).derivative;
        if (any) dz *= s.logit_scale;
        if (!kPlain && any && s.softcap != A(0)) {
          const A unit = z * s.inverse_softcap;
          dz *= A(1) - unit * unit;
        }
        grads[i] = invalid ? A(NAN) : dz;
      }
      layout.store(grad_row, call.grad_class_stride, chunk.first, grads);
    });
  }
}

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("fastloss: a CUDA kernel did not start: ") + cudaGetErrorString(error));
  }
}
#else
template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), int64_t blocks, int threads, void*, Arguments... arguments) {
  simt::launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), arguments...);
}
#endif

bool contiguous(const RowCall& call) { return call.inner == 1 && call.class_stride == 1; }

template <class A>
Settings<A> settings(const RowCall& call, const RowLaunch& launch, int64_t pack, int& threads, int64_t& blocks) {
  Settings<A> s{};
  for (int i = 0; i < kMaxParams; ++i) s.params[i] = static_cast<A>(call.params[i]);
  s.keep = static_cast<A>(1.0 - call.label_smoothing);
  s.spread = call.label_smoothing == 0.0 || call.classes == 0 ? A(0) : static_cast<A>(call.label_smoothing / call.classes);
  s.z_loss = static_cast<A>(call.z_loss);
  s.softcap = static_cast<A>(call.softcap);
  s.inverse_softcap = call.softcap == 0.0 ? A(0) : static_cast<A>(1.0 / call.softcap);
  s.logit_scale = static_cast<A>(call.logit_scale);
  s.rows = call.outer * call.inner;
  s.partial = static_cast<A*>(launch.partial);
  s.lanes = !contiguous(call) ? 1 : call.classes <= kWarpPacks * pack ? kLanes : kThreads;
  const int64_t wanted = s.rows * s.lanes;  // threads, if nothing limited them
  threads = wanted >= kThreads ? kThreads : static_cast<int>(wanted <= kLanes ? kLanes : (wanted + kLanes - 1) / kLanes * kLanes);
  blocks = (wanted + threads - 1) / threads;
  blocks = blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks;
  return s;
}

template <class T, class F, bool kSoft, bool kPlain>
void run(bool forward, const RowCall& call, const RowLaunch& launch) {
  int threads;
  int64_t blocks;
  const auto s = settings<AccOf<T>>(call, launch, Pack<T>::kCount, threads, blocks);
  if (contiguous(call)) {
    start(forward ? forward_kernel<T, F, kSoft, kPlain, Contiguous> : backward_kernel<T, F, kSoft, kPlain, Contiguous>, blocks, threads,
          launch.stream, call, s);
  } else {
    start(forward ? forward_kernel<T, F, kSoft, kPlain, Strided> : backward_kernel<T, F, kSoft, kPlain, Strided>, blocks, threads,
          launch.stream, call, s);
  }
  if (!forward) return;
  const auto finish = [&](auto* loss) {
    using L = std::remove_pointer_t<decltype(loss)>;
    start(finish_kernel<AccOf<T>, L>, 1, kThreads, launch.stream, static_cast<const AccOf<T>*>(s.partial), static_cast<int>(blocks),
          call.reduction, call.zero_empty != 0, static_cast<AccOf<T>*>(call.divisor), loss);
  };
  switch (launch.loss_scalar) {
    case Scalar::kFloat: return finish(static_cast<float*>(launch.loss));
    case Scalar::kDouble: return finish(static_cast<double*>(launch.loss));
    case Scalar::kBFloat16: return finish(static_cast<__nv_bfloat16*>(launch.loss));
    case Scalar::kHalf: return finish(static_cast<__half*>(launch.loss));
  }
}

template <class F>
void choose(bool forward, const RowCall& call, const RowLaunch& launch) {
  const bool plain = call.softcap == 0.0 && call.label_smoothing == 0.0 && !call.entropy && !call.grad_entropy;
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    if (launch.soft) return run<T, F, true, false>(forward, call, launch);
    plain ? run<T, F, false, true>(forward, call, launch) : run<T, F, false, false>(forward, call, launch);
  };
  switch (launch.scalar) {
    case Scalar::kFloat: return typed(float{});
    case Scalar::kDouble: return typed(double{});
    case Scalar::kBFloat16: return typed(__nv_bfloat16{});
    case Scalar::kHalf: return typed(__half{});
  }
}

void dispatch(bool forward, const RowCall& call, const RowLaunch& launch) {
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) return choose<Functor>(forward, call, launch);
  FASTLOSS_ROW(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no row loss named ") + launch.functor);
}

}  // namespace

void row_forward(const RowCall& call, const RowLaunch& launch) { dispatch(true, call, launch); }
void row_backward(const RowCall& call, const RowLaunch& launch) { dispatch(false, call, launch); }

}  // namespace fastloss
