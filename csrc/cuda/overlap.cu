// The overlap engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A block takes chunks of the pixels of one sample, a thread a 16-byte pack of neighbouring pixels where the input lies so, else as
// many single ones. What a pixel needs of all its classes stays in registers. Each block leaves its part of the sums, and a second
// kernel adds the parts in a fixed order: the same bits from run to run.
#include "../overlap.h"
#include "launch.h"

namespace fastloss {
namespace {

constexpr int kGroup = 32;  // classes whose sums a block holds in shared memory; of no more, for all its chunks
constexpr int kAhead = 4;   // classes that a thread has in flight while it looks for the maximum

// Blocks that a multiprocessor must have registers for. The logarithms of doubles take more than half of them.
template <class T>
constexpr int kResident = sizeof(T) == 8 ? 1 : 2;

// A tensor over samples, classes and pixels. packed: pixels are neighbours in aligned packs.
struct Volume {
  Operand operand;
  bool packed;
};

// The settings of a call in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Settings {
  A params[kMaxParams];
  Volume input, target, grad_input, grad_target;
  int64_t chunks;     // of the pixels of a sample
  int64_t blocks;     // that share the chunks of a sample
  A* statistics;
  Sum<A>* partial;    // (samples, blocks, classes, kStatistics); null where a block has all of a sample
};

// The pixels that a thread takes at once: neighbours, or so far apart that neighbouring threads take neighbours.
template <class T>
struct Pixels {
  static constexpr int kCount = Pack<T>::kCount;
  int64_t first;
  int step;
  unsigned present;  // a bit for each

  __device__ Pixels(int64_t chunk, int64_t end, bool neighbours)
      : first(chunk * blockDim.x * kCount + threadIdx.x * (neighbours ? kCount : 1)), step(neighbours ? 1 : blockDim.x), present(0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) present |= static_cast<unsigned>(first + i * step < end) << i;
  }

  __device__ bool has(int i) const { return present >> i & 1; }

  __device__ int64_t offset(const int64_t* strides, int64_t sample, int64_t c) const {
    return sample * strides[0] + c * strides[1] + first * strides[2];
  }

  __device__ Words<T> load(const Volume& volume, int64_t sample, int64_t c) const {
    const int64_t* strides = volume.operand.strides;
    const T* from = static_cast<const T*>(volume.operand.data) + offset(strides, sample, c);
    Words<T> words{};
    if (volume.packed) {
      if (present) words.load(from);
      return words;
    }
    const int64_t apart = step * strides[2];  // added on, since multiples of it would each stay in a register
#pragma unroll
    for (int i = 0; i < kCount; ++i, from += apart) {
      if (has(i)) words.set(i, *from);
    }
    return words;
  }

  __device__ void store(const Volume& volume, int64_t sample, int64_t c, const AccOf<T> (&values)[kCount]) const {
    const int64_t* strides = volume.operand.strides;
    T* to = static_cast<T*>(const_cast<void*>(volume.operand.data)) + offset(strides, sample, c);
    if (volume.packed) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < kCount; ++i) narrow(values[i], pack.values[i]);
      if (present) store_pack(to, pack);
      return;
    }
    const int64_t apart = step * strides[2];
#pragma unroll
    for (int i = 0; i < kCount; ++i, to += apart) {
      if (has(i)) narrow(values[i], *to);
    }
  }
};

template <class Signed, class Unsigned>
__device__ __forceinline__ int64_t read_label(const void* labels, int64_t at, bool is_signed) {
  if (is_signed) return static_cast<const Signed*>(labels)[at];
  return static_cast<int64_t>(static_cast<const Unsigned*>(labels)[at]);
}

__device__ __forceinline__ int64_t read_label(const OverlapCall& call, int64_t at) {
  const bool is_signed = call.label_signed != 0;
  switch (call.label_bytes) {
    case 1: return read_label<int8_t, uint8_t>(call.target, at, is_signed);
    case 2: return read_label<int16_t, uint16_t>(call.target, at, is_signed);
    case 4: return read_label<int32_t, uint32_t>(call.target, at, is_signed);
    default: return static_cast<const int64_t*>(call.target)[at];
  }
}

// A thread's pixels of one sample, with their targets and what normalises their probabilities.
template <class T, class F, bool kLabels>
struct Site {
  using A = AccOf<T>;
  static constexpr int kCount = Pixels<T>::kCount;

  struct Held {
    Words<T> input, target;
  };
  struct Truth {
    A t;
    bool counts;
  };

  const OverlapCall& call;
  const Settings<A>& s;
  const int64_t sample;
  const Pixels<T> pixels;
  int label[kLabels ? kCount : 1];  // the class, or -1
  unsigned counted;                 // labels: a bit for each pixel
  A ignored;                        // numbers
  A max[F::kSoftmax ? kCount : 1], log_sum[F::kSoftmax ? kCount : 1];

  __device__ Site(const OverlapCall& call, const Settings<A>& s, int64_t sample, int64_t chunk)
      : call(call), s(s), sample(sample), pixels(chunk, call.pixels, s.input.packed), counted(0), ignored(0) {
    if constexpr (kLabels) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        label[i] = -1;
        if (!pixels.has(i)) continue;
        const int64_t pixel = pixels.first + i * pixels.step;
        const int64_t given = read_label(call, sample * call.target_strides[0] + pixel * call.target_strides[2]);
        if (call.has_ignore && given == call.ignore_index) continue;
        const int64_t c = given - call.first_label;
        if (c >= 0 && c < call.classes) label[i] = static_cast<int>(c);
        counted |= 1u << i;
      }
    } else {
      T rounded;
      narrow(static_cast<A>(call.ignore_index), rounded);
      ignored = widen(rounded);
    }
    if constexpr (F::kSoftmax) normalise();
  }

  __device__ void normalise() {
    Online<A> online[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) online[i] = {A(-INFINITY), {0, 0}};
    const auto take = [&](int64_t first, auto number) {
      constexpr int kNumber = decltype(number)::value;
      Words<T> held[kNumber];
#pragma unroll
      for (int k = 0; k < kNumber; ++k) held[k] = pixels.load(s.input, sample, first + k);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        A z[kNumber];
#pragma unroll
        for (int k = 0; k < kNumber; ++k) z[k] = widen(held[k].get(i));
        online[i].add(z);
      }
    };
    int64_t c = 0;
#pragma unroll 1
    for (; c + kAhead <= call.classes; c += kAhead) take(c, std::integral_constant<int, kAhead>());
#pragma unroll 1
    for (; c < call.classes; ++c) take(c, std::integral_constant<int, 1>());
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      max[i] = online[i].max;
      log_sum[i] = log(online[i].sum.total());
    }
  }

  // visit(c, held) classes in their order; the next is on its way while one is worked on.
  template <class Visit>
  __device__ void sweep(int64_t begin, int64_t end, Visit visit) const {
    const auto load = [&](int64_t c) {
      Held held{};
      held.input = pixels.load(s.input, sample, c);
      if constexpr (!kLabels) held.target = pixels.load(s.target, sample, c);
      return held;
    };
    Held next = load(begin);
#pragma unroll 1
    for (int64_t c = begin; c < end; ++c) {
      const Held held = next;
      if (c + 1 < end) next = load(c + 1);
      visit(c, held);
    }
  }

  __device__ Truth truth(int64_t c, const Held& held, int i) const {
    if constexpr (kLabels) {
      const bool counts = counted >> i & 1;
      return {counts && label[i] == c ? A(1) : A(0), counts};
    } else {
      const A t = widen(held.target.get(i));
      const bool counts = pixels.has(i) && !(call.has_ignore && t == ignored);
      return {counts ? t : A(0), counts};
    }
  }

  // Of a softmax, slope and loss_input are derivatives by the log-probability.
  __device__ Activated<A> activate(const Held& held, int i, A t) const {
    const A x = widen(held.input.get(i));
    if constexpr (F::kSoftmax) {
      const A l = x - max[i] - log_sum[i], p = exp(l);
      Activated<A> point{p, p, A(0), A(0), A(0)};
      if constexpr (F::kTerm) {
        if (!kLabels || t != A(0)) {  // 0 times the loss of a class that is impossible would be NaN
          const Slope<A> term = F::Term::eval(l, s.params);
          point.loss = t * term.value;
          point.loss_input = t * term.derivative;
          point.loss_target = term.value;
        }
      }
      return point;
    } else {
      return F::eval(x, t, s.params);
    }
  }
};

// Adds each of the numbers over the lanes of a warp; lane l gets the sum of number l / 4. To halve at each step what is exchanged
// takes 9 shuffles instead of 40.
template <class A>
__device__ __forceinline__ A add_lanes(A (&values)[kStatistics]) {
  static_assert(kStatistics == 8);
  int distance = kLanes / 2;
#pragma unroll
  for (int half = kStatistics / 2; half > 0; half /= 2, distance /= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A sent = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kWholeWarp, sent, distance);
    }
  }
#pragma unroll
  for (; distance > 0; distance /= 2) values[0] += __shfl_xor_sync(kWholeWarp, values[0], distance);
  return values[0];
}

template <class T, class F, bool kLabels>
__global__ void __launch_bounds__(kThreads, kResident<T>) forward_kernel(const OverlapCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  // Each warp adds to its own; of one statistic always the same lane.
  __shared__ Sum<A> sums[kThreads / kLanes][kGroup * kStatistics];
  Sum<A>* own = sums[threadIdx.x / kLanes];
  const int lane = threadIdx.x % kLanes;
  const bool one_group = call.classes <= kGroup;

  for (int64_t unit = blockIdx.x; unit < call.samples * s.blocks; unit += gridDim.x) {
    const int64_t sample = unit / s.blocks, block = unit - sample * s.blocks;
    for (int64_t chunk = block; chunk < s.chunks; chunk += s.blocks) {
      const bool first_chunk = chunk == block, last_chunk = chunk + s.blocks >= s.chunks;
      const Site<T, F, kLabels> site(call, s, sample, chunk);

      for (int64_t begin = 0; begin < call.classes; begin += kGroup) {
        const int64_t end = begin + kGroup < call.classes ? begin + kGroup : call.classes;
        site.sweep(begin, end, [&](int64_t c, const auto& held) {
          A terms[kStatistics] = {};
#pragma unroll
          for (int i = 0; i < site.kCount; ++i) {
            const auto truth = site.truth(c, held, i);
            const Activated<A> point = site.activate(held, i, truth.t);
            const A p = truth.counts ? point.p : A(0);
            terms[kIntersection] += p * truth.t;
            terms[kInput] += p;
            terms[kInputSquare] += p * p;
            terms[kTarget] += truth.t;
            terms[kTargetSquare] += truth.t * truth.t;
            terms[kDifference] += abs(p - truth.t);
            terms[kLoss] += truth.counts ? point.loss : A(0);
            terms[kCount] += truth.counts ? A(1) : A(0);
          }
          const A sum = add_lanes(terms);
          constexpr int kSame = kLanes / kStatistics;  // lanes with the same sum
          if (lane % kSame != 0) return;
          Sum<A>& slot = own[(c - begin) * kStatistics + lane / kSame];
          if (one_group && !first_chunk) {
            slot.add(sum);
          } else {
            slot = {sum, A(0)};
          }
        });
        if (one_group && !last_chunk) continue;

        __syncthreads();
        const int64_t from = begin * kStatistics, width = call.classes * kStatistics;
        for (int i = threadIdx.x; i < (end - begin) * kStatistics; i += blockDim.x) {
          Sum<A> sum = sums[0][i];
          for (unsigned warp = 1; warp < blockDim.x / kLanes; ++warp) sum.merge(sums[warp][i]);
          if (s.partial == nullptr) {
            s.statistics[sample * width + from + i] = sum.total();
            continue;
          }
          Sum<A>& part = s.partial[unit * width + from + i];
          if (!one_group && !first_chunk) sum.merge(part);
          part = sum;
        }
        __syncthreads();  // before the next group overwrites the sums
      }
    }
  }
}

// Adds what the blocks of a sample left. Neighbouring threads have the statistics of one class, and every so many blocks.
template <class A>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const Sum<A>* partial, int64_t samples, int64_t classes, int64_t blocks, A* statistics) {
  __shared__ Sum<A> parts[kThreads / kLanes][kStatistics];
  const int statistic = threadIdx.x % kStatistics;
  for (int64_t row = blockIdx.x; row < samples * classes; row += gridDim.x) {
    const int64_t sample = row / classes, c = row - sample * classes;
    Sum<A> sum{0, 0};
    for (int64_t block = threadIdx.x / kStatistics; block < blocks; block += blockDim.x / kStatistics) {
      sum.merge(partial[((sample * blocks + block) * classes + c) * kStatistics + statistic]);
    }
#pragma unroll
    for (int distance = kLanes / 2; distance >= kStatistics; distance /= 2) {
      sum.merge(shuffled(sum, [&](auto word) { return __shfl_xor_sync(kWholeWarp, word, distance); }));
    }
    if (threadIdx.x % kLanes < kStatistics) parts[threadIdx.x / kLanes][statistic] = sum;
    __syncthreads();
    if (threadIdx.x < kStatistics) {
      for (unsigned warp = 1; warp < blockDim.x / kLanes; ++warp) sum.merge(parts[warp][statistic]);
      statistics[row * kStatistics + statistic] = sum.total();
    }
    __syncthreads();  // before the next row overwrites the parts
  }
}

// The gradients of the statistics of one sample and class.
template <class A>
struct Upstream {
  A of[kStatistics];

  __device__ Upstream(const OverlapCall& call, int64_t sample, int64_t c) {
    const A* from = static_cast<const A*>(call.grad_statistics) + (sample * call.classes + c) * kStatistics;
    constexpr int kCount = Pack<A>::kCount;
#pragma unroll
    for (int first = 0; first < kStatistics; first += kCount) {
      Pack<A> pack;
      load_pack(from + first, pack);
#pragma unroll
      for (int i = 0; i < kCount; ++i) of[first + i] = pack.values[i];
    }
  }

  // To the input, or of a softmax to the log-probability.
  __device__ A to_input(const Activated<A>& point, A t) const {
    const A by_p = of[kIntersection] * t + of[kInput] + A(2) * of[kInputSquare] * point.p + of[kDifference] * sign(point.p - t);
    return point.slope * by_p + of[kLoss] * point.loss_input;
  }

  __device__ A to_target(const Activated<A>& point, A t) const {
    return of[kIntersection] * point.p + of[kTarget] + A(2) * of[kTargetSquare] * t - of[kDifference] * sign(point.p - t) +
           of[kLoss] * point.loss_target;
  }
};

template <class T, class F, bool kLabels>
__global__ void __launch_bounds__(kThreads, kResident<T>) backward_kernel(const OverlapCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  for (int64_t unit = blockIdx.x; unit < call.samples * s.chunks; unit += gridDim.x) {
    const int64_t sample = unit / s.chunks;
    const Site<T, F, kLabels> site(call, s, sample, unit - sample * s.chunks);
    constexpr int kCount = decltype(site)::kCount;

    // A softmax takes from each class its share of what all get. What does not count may hold NaN.
    A total[F::kSoftmax ? kCount : 1];
    if constexpr (F::kSoftmax) {
      Sum<A> sum[kCount] = {};
      site.sweep(0, call.classes, [&](int64_t c, const auto& held) {
        const Upstream<A> upstream(call, sample, c);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const auto truth = site.truth(c, held, i);
          if (truth.counts) sum[i].add(upstream.to_input(site.activate(held, i, truth.t), truth.t));
        }
      });
#pragma unroll
      for (int i = 0; i < kCount; ++i) total[i] = sum[i].total();
    }

    site.sweep(0, call.classes, [&](int64_t c, const auto& held) {
      const Upstream<A> upstream(call, sample, c);
      A to_input[kCount], to_target[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const auto truth = site.truth(c, held, i);
        const Activated<A> point = site.activate(held, i, truth.t);
        to_input[i] = truth.counts ? upstream.to_input(point, truth.t) : A(0);
        if constexpr (F::kSoftmax) {
          // Of numbers, classes that do not count have a part in the normalisation of those that do.
          if (!kLabels || truth.counts) to_input[i] -= point.p * total[i];
        }
        to_target[i] = truth.counts ? upstream.to_target(point, truth.t) : A(0);
      }
      if (s.grad_input.operand.data) site.pixels.store(s.grad_input, sample, c, to_input);
      if constexpr (!kLabels) {
        if (s.grad_target.operand.data) site.pixels.store(s.grad_target, sample, c, to_target);
      }
    });
  }
}

// How a call is divided.
struct Division {
  int threads;
  int64_t chunks, blocks;
  bool alone;  // a block has all of a sample

  Division(int64_t samples, int64_t pixels, int64_t pack) {
    const Grid grid((pixels + pack - 1) / pack);
    threads = grid.threads;
    chunks = (pixels + threads * pack - 1) / (threads * pack);
    const int64_t most = samples < kMaxBlocks ? kMaxBlocks / samples : 1;
    blocks = chunks < most ? chunks : most;
    alone = chunks == 1;
  }
};

int64_t at_most_max_blocks(int64_t wanted) { return wanted < kMaxBlocks ? wanted : kMaxBlocks; }

Volume volume(const OverlapCall& call, const void* data, const int64_t* strides, int64_t pack) {
  const int64_t sizes[] = {call.samples, call.classes, call.pixels};
  const Operand operand{data, {strides[0], strides[1], strides[2]}};
  return {operand, strides[2] == 1 && call.pixels % pack == 0 && in_packs(operand, sizes, pack)};
}

template <class T, class F, bool kLabels>
void run(bool forward, const OverlapCall& call, const OverlapLaunch& launch) {
  using A = AccOf<T>;
  constexpr int kCount = Pack<T>::kCount;
  const Division division(call.samples, call.pixels, kCount);
  Settings<A> s{};
  for (int i = 0; i < kMaxParams; ++i) s.params[i] = static_cast<A>(call.params[i]);
  s.input = volume(call, call.input, call.input_strides, kCount);
  s.target = volume(call, call.target, call.target_strides, kCount);
  s.grad_input = volume(call, call.grad_input, call.grad_strides, kCount);
  s.grad_target = volume(call, call.grad_target, call.grad_target_strides, kCount);
  // Packs of the others are neighbouring pixels too.
  for (Volume* other : {&s.target, &s.grad_input, &s.grad_target}) other->packed = other->packed && s.input.packed;
  s.chunks = division.chunks;
  s.blocks = division.blocks;
  s.statistics = static_cast<A*>(launch.statistics);
  s.partial = static_cast<Sum<A>*>(launch.partial);
  if (!forward) {
    return start(backward_kernel<T, F, kLabels>, at_most_max_blocks(call.samples * s.chunks), division.threads, launch.stream, call, s);
  }
  start(forward_kernel<T, F, kLabels>, at_most_max_blocks(call.samples * s.blocks), division.threads, launch.stream, call, s);
  if (division.alone) return;
  start(merge_kernel<A>, at_most_max_blocks(call.samples * call.classes), Grid(s.blocks * kStatistics).threads, launch.stream,
        static_cast<const Sum<A>*>(s.partial), call.samples, call.classes, s.blocks, s.statistics);
}

template <class F>
void choose(bool forward, const OverlapCall& call, const OverlapLaunch& launch) {
  with_type(launch.scalar, [&](auto zero) {
    using T = decltype(zero);
    call.label_bytes ? run<T, F, true>(forward, call, launch) : run<T, F, false>(forward, call, launch);
  });
}

void dispatch(bool forward, const OverlapCall& call, const OverlapLaunch& launch) {
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) return choose<Functor>(forward, call, launch);
  FASTLOSS_OVERLAP(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no overlap statistics named ") + launch.functor);
}

}  // namespace

int64_t overlap_scratch(Scalar scalar, int64_t samples, int64_t classes, int64_t pixels) {
  int64_t count = 0;
  with_type(scalar, [&](auto zero) {
    using T = decltype(zero);
    const Division division(samples, pixels, Pack<T>::kCount);
    constexpr int64_t kNumbers = sizeof(Sum<AccOf<T>>) / sizeof(AccOf<T>);
    if (!division.alone) count = samples * division.blocks * classes * kStatistics * kNumbers;
  });
  return count;
}

void overlap_forward(const OverlapCall& call, const OverlapLaunch& launch) { dispatch(true, call, launch); }
void overlap_backward(const OverlapCall& call, const OverlapLaunch& launch) { dispatch(false, call, launch); }

}  // namespace fastloss
