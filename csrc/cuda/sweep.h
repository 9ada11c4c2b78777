// How the threads of a block share rows: 16-byte packs, sums that merge, reductions over warp and block, and the two layouts.
//
// A row belongs to a group of lanes: a warp or a block where its classes are contiguous, one thread where neighbouring rows
// are (loads are then coalesced over the rows). Both are a layout, and kernels are written once over it.
#pragma once

#include "../math.h"

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

// kMaxBlocks: of a grid, so that the number of partial sums is known; blocks then take several rows in turn.
#if defined(__CUDACC__)
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;
constexpr int64_t kWarpPacks = 128;  // rows of up to this many 16-byte packs are swept by one warp
#else
constexpr int kThreads = 64;  // every thread is a fibre
constexpr int64_t kMaxBlocks = 8;
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

// A pack as words of a register's size, since the compiler would take an array of T apart beside the load: any use there would wait
// for it before the next load begins.
template <class T>
struct Words {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr int kBits = 8 * sizeof(T), kInWord = sizeof(Word) / sizeof(T);
  Pack<Word> pack;

  __device__ void load(const T* from) { load_pack(reinterpret_cast<const Word*>(from), pack); }
  __device__ T get(int i) const {
    const Word word = pack.values[i / kInWord] >> (i % kInWord * kBits);
    T value;
    memcpy(&value, &word, sizeof(T));
    return value;
  }
  // Once for each i, into words of 0.
  __device__ void set(int i, T value) {
    Word word = 0;
    memcpy(&word, &value, sizeof(T));
    pack.values[i / kInWord] |= word << (i % kInWord * kBits);
  }
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
  __device__ void merge(const Sum& other) {
    add(other.high);
    low += other.low;
  }
  // An infinite sum has a NaN for its error.
  __device__ A total() const { return low - low == A(0) ? high + low : high; }
};

// Maximum and sum of exp(z - max) over some classes. Minus infinity counts for nothing, also while nothing else was seen; NaN
// and plus infinity make the sum NaN.
template <class A>
struct Peak {
  A max, sum;

  __device__ void merge(const Peak& other) {
    const A top = larger(max, other.max), shift = finite_shift(top);
    sum = sum * exp(max - shift) + other.sum * exp(other.max - shift);
    max = top;
  }
  __device__ static A finite_shift(A top) { return top == A(-INFINITY) ? A(0) : top; }
};

// A Peak that grows by a few classes at a time.
template <class A>
struct Online {
  A max;
  Sum<A> sum;

  template <int N>
  __device__ void add(const A (&z)[N]) {
    A top = max;
    for (int i = 0; i < N; ++i) top = larger(top, z[i]);
    const A shift = Peak<A>::finite_shift(top);
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
};

// The first of the largest, where NaN is larger than any number.
template <class A>
struct Best {
  A value;
  int64_t index;

  __device__ void merge(const Best& other) {
    const bool above = other.value > value || (other.value != other.value && value == value);
    const bool equal = other.value == value || (other.value != other.value && value != value);
    if (above || (equal && other.index < index)) *this = other;
  }
};

template <class A>
struct Totals {
  A loss, count;

  __device__ void merge(const Totals& other) {
    loss += other.loss;
    count += other.count;
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
  using Word = std::conditional_t<sizeof(S) % 8 == 0, unsigned long long, unsigned>;
  Word words[sizeof(S) / sizeof(Word)];
  memcpy(words, &value, sizeof(S));
#pragma unroll
  for (Word& word : words) word = shuffle(word);
  S result;
  memcpy(&result, words, sizeof(S));
  return result;
}

template <class S>
__device__ __forceinline__ S reduce_warp(S value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value.merge(shuffled(value, [&](auto word) { return __shfl_xor_sync(kWholeWarp, word, distance); }));
  }
  // Lanes merged in different orders and may differ in the last bit.
  return shuffled(value, [](auto word) { return __shfl_sync(kWholeWarp, word, 0); });
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

}  // namespace fastloss
