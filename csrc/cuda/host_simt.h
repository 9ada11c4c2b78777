// Runs CUDA kernels on the host: one fibre per thread of a block, so that barriers, shuffles and shared memory keep their
// meaning while the code is an ordinary C++ function that a debugger or a sanitizer understands.
//
// Blocks run one after the other. Between two synchronisation points the fibres run one at a time, warps and their lanes in a
// random order, which shows a missing barrier as a result that changes with the order; a barrier or shuffle that some threads
// of the block or warp do not reach is an error. Only what this library's kernels use is here: one-dimensional grids, full-warp shuffles.
#pragma once

#undef _FORTIFY_SOURCE  // its longjmp refuses to leave a stack for another

#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct SimtIndex {
  unsigned x;
};
inline thread_local SimtIndex threadIdx, blockIdx, blockDim, gridDim;

namespace fastloss::simt {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kStaggerBytes = 17 * 64;  // else the tops of all stacks would share one set of the cache

// Seeds the order in which fibres and blocks run; 0 runs them in their natural order.
inline std::atomic<uint64_t> order_seed{1};

class Block {
 public:
  // Run body() on every thread of every block.
  template <class Body>
  void launch(unsigned blocks, unsigned threads, Body& body) {
    if (threads == 0 || threads % kWarp) throw std::runtime_error("simt: a block must be a whole number of warps");
    body_ = [](void* context) { (*static_cast<Body*>(context))(); };
    context_ = &body;
    random_ = order_seed.load();
    for (unsigned lane = 0; lane < kWarp; ++lane) lanes_[lane] = lane;
    blockDim.x = threads;
    gridDim.x = blocks;
    std::vector<unsigned> order = count_to(blocks);
    shuffle(order);
    for (unsigned block : order) {
      blockIdx.x = block;
      run(threads);
    }
  }

  void barrier(int line) { wait(Waiting::kBarrier, line); }

  // Each thread of a warp offers `bits` and takes what lane `source` offered.
  uint64_t exchange(unsigned mask, uint64_t bits, unsigned source, int line) {
    if (mask != 0xffffffffu) throw std::runtime_error("simt: only shuffles of a whole warp are supported");
    Fibre& self = *fibres_[threadIdx.x];
    const unsigned lane = threadIdx.x % kWarp;
    // Two sets of slots: a thread can be at most one exchange ahead of the slowest reader of its warp.
    uint64_t* slots = warps_[threadIdx.x / kWarp].slots[self.exchanges++ % 2];
    slots[lane] = bits;
    wait(Waiting::kShuffle, line);
    return slots[source < kWarp ? source : lane];
  }

 private:
  enum class Waiting { kNothing, kShuffle, kBarrier, kEnd };

  struct Fibre {
    Waiting waiting = Waiting::kNothing;
    int line = 0;  // of the source, where it waits
    unsigned exchanges = 0;
    bool entered = false;
    ucontext_t start;
    jmp_buf resume;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    void* shadow = nullptr;  // AddressSanitizer's record of the stack
  };

  struct Warp {
    uint64_t slots[2][kWarp];
    bool ready;  // all of its threads can go on
  };

  void run(unsigned threads) {
    while (fibres_.size() < threads) fibres_.push_back(std::make_unique<Fibre>());
    for (unsigned thread = 0; thread < threads; ++thread) fibres_[thread]->exchanges = 0;
    warps_.resize(threads / kWarp);
    for (Warp& warp : warps_) warp.ready = true;
    for (size_t current = 0;;) {
      current = next(current);
      if (current == warps_.size()) {
        if (all_wait(Waiting::kEnd, 0, threads)) return;
        if (!all_wait(Waiting::kBarrier, 0, threads)) diverged(threads);
        for (Warp& warp : warps_) warp.ready = true;
        continue;
      }
      const unsigned first = static_cast<unsigned>(current) * kWarp;
      shuffle(lanes_);
      for (unsigned lane : lanes_) enter(first + lane);
      if (failure_) {
        fibres_.clear();  // the others stay where they are for ever
        std::rethrow_exception(std::exchange(failure_, nullptr));
      }
      warps_[current].ready = all_wait(Waiting::kShuffle, first, first + kWarp);
    }
  }

  // The warp to run next, or their number if none can. Most often the same again: a warp that gets far ahead of the others
  // shows shared memory that is written before everyone has read it.
  size_t next(size_t current) {
    if (current < warps_.size() && warps_[current].ready && random(8) != 0) return current;
    const size_t begin = random(warps_.size());
    for (size_t i = 0; i < warps_.size(); ++i) {
      const size_t warp = (begin + i) % warps_.size();
      if (warps_[warp].ready) return warp;
    }
    return warps_.size();
  }

  bool all_wait(Waiting what, unsigned begin, unsigned end) const {
    for (unsigned thread = begin; thread < end; ++thread) {
      if (fibres_[thread]->waiting != what || fibres_[thread]->line != fibres_[begin]->line) return false;
    }
    return true;
  }

  [[noreturn]] void diverged(unsigned threads) {
    unsigned other = 1;
    while (other + 1 < threads && fibres_[other]->waiting == fibres_[0]->waiting && fibres_[other]->line == fibres_[0]->line) ++other;
    const std::string message = "simt: divergent synchronisation in block " + std::to_string(blockIdx.x) + ": thread 0 " + place(0) +
                                ", thread " + std::to_string(other) + " " + place(other);
    fibres_.clear();
    throw std::runtime_error(message);
  }

  std::string place(unsigned thread) const {
    const Fibre& fibre = *fibres_[thread];
    if (fibre.waiting == Waiting::kEnd) return "has returned";
    return std::string("waits at the ") + (fibre.waiting == Waiting::kBarrier ? "barrier" : "shuffle") + " of line " +
           std::to_string(fibre.line);
  }

  void enter(unsigned thread) {
    Fibre& fibre = *fibres_[thread];
    threadIdx.x = thread;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&shadow_, fibre.stack.get(), kStackBytes);
#endif
    // swapcontext makes a system call for the signal mask, 20 times the cost of a jump: only the first entry needs it.
    if (_setjmp(scheduler_) == 0) {
      if (fibre.entered) _longjmp(fibre.resume, 1);
      fibre.entered = true;
      getcontext(&fibre.start);
      fibre.start.uc_stack.ss_sp = fibre.stack.get();
      fibre.start.uc_stack.ss_size = kStackBytes - thread % 32 * kStaggerBytes;
      fibre.start.uc_link = nullptr;
      makecontext(&fibre.start, &Block::main, 0);
      setcontext(&fibre.start);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(shadow_, nullptr, nullptr);
#endif
  }

  void wait(Waiting what, int line) {
    Fibre& self = *fibres_[threadIdx.x];
    self.waiting = what;
    self.line = line;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&self.shadow, outer_stack_, outer_bytes_);
#endif
    if (_setjmp(self.resume) == 0) _longjmp(scheduler_, 1);
    arrived(self);
  }

  void arrived(Fibre& self) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(self.shadow, &outer_stack_, &outer_bytes_);
#endif
    self.waiting = Waiting::kNothing;
  }

  // The life of a fibre: one thread of a block after the other.
  static void main();

  static std::vector<unsigned> count_to(unsigned end) {
    std::vector<unsigned> numbers(end);
    std::iota(numbers.begin(), numbers.end(), 0u);
    return numbers;
  }

  size_t random(size_t below) {
    if (random_ == 0) return 0;
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return (random_ >> 33) % below;
  }

  void shuffle(std::vector<unsigned>& order) {
    if (random_ == 0) return;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random(i)]);
  }

  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  uint64_t random_ = 0;
  std::vector<std::unique_ptr<Fibre>> fibres_;  // kept between blocks and launches
  std::vector<Warp> warps_;
  std::vector<unsigned> lanes_ = count_to(kWarp);
  std::exception_ptr failure_;
  jmp_buf scheduler_;
  void* shadow_ = nullptr;
  const void* outer_stack_ = nullptr;
  size_t outer_bytes_ = 0;
};

inline thread_local Block block;

inline void Block::main() {
  Fibre& self = *block.fibres_[threadIdx.x];
  block.arrived(self);
  for (;;) {
    try {
      block.body_(block.context_);
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    block.wait(Waiting::kEnd, 0);
  }
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, Arguments... arguments) {
  auto body = [&] { kernel(arguments...); };
  block.launch(blocks, threads, body);
}

// What a vector load or store of the device would fault on.
inline void require_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) throw std::runtime_error("simt: misaligned vector access");
}

}  // namespace fastloss::simt

inline void __syncthreads(int line = __builtin_LINE()) { fastloss::simt::block.barrier(line); }

template <class V>
V __shfl_sync(unsigned mask, V value, int source, int line = __builtin_LINE()) {
  static_assert(sizeof(V) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = fastloss::simt::block.exchange(mask, bits, static_cast<unsigned>(source), line);
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

template <class V>
V __shfl_xor_sync(unsigned mask, V value, int lanes, int line = __builtin_LINE()) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes, line);
}

template <class V>
V __shfl_down_sync(unsigned mask, V value, unsigned distance, int line = __builtin_LINE()) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32 + distance), line);
}

// The two 16-bit types, with CUDA's names and rounding: to nearest, ties to even.
struct __nv_bfloat16 {
  uint16_t bits;
};

struct __half {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline float __half2float(__half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else {
    // Read as a float with the half's exponent and fraction, the value is too small by 2^112; so are subnormals.
    bits = magnitude << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    std::memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __half __float2half_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the spacing of halves is 2^-24, the spacing of floats at 0.5: one float addition rounds for us.
    float value;
    std::memcpy(&value, &magnitude, sizeof value);
    value += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &value, sizeof rounded);
    return {static_cast<uint16_t>(sign | (rounded - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}
