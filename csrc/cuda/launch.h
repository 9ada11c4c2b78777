// How a call becomes launches: the type of the numbers, the grid, the start of a kernel, and the sum of what the blocks of a grid left.
#pragma once

#include "kernels.h"
#include "sweep.h"

namespace fastloss {

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

// visit() a number of the type.
template <class Visit>
void with_type(Scalar scalar, Visit visit) {
  switch (scalar) {
    case Scalar::kFloat: return visit(float{});
    case Scalar::kDouble: return visit(double{});
    case Scalar::kBFloat16: return visit(__nv_bfloat16{});
    case Scalar::kHalf: return visit(__half{});
  }
}

// Whether an operand is all packs: of one number, or of neighbours at aligned addresses.
inline bool in_packs(const Operand& operand, const int64_t* sizes, int64_t pack) {
  const int64_t step = operand.strides[kMaxDims - 1];
  if (step != 1) return step == 0;
  for (int d = 0; d < kMaxDims - 1; ++d) {
    if (sizes[d] > 1 && operand.strides[d] % pack != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(operand.data) % 16 == 0;
}

struct Grid {
  int64_t blocks;
  int threads;

  // For so many threads, if nothing limited them; never empty, so that nothing can be summed too.
  explicit Grid(int64_t wanted)
      : threads(wanted >= kThreads ? kThreads
                                   : static_cast<int>(wanted <= kLanes ? kLanes : (wanted + kLanes - 1) / kLanes * kLanes)) {
    blocks = (wanted + threads - 1) / threads;
    blocks = blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks;
  }
};

// A block's part of the sums.
template <class A>
__device__ __forceinline__ void leave_partial(A* partial, const Sum<A>& loss_sum, const Sum<A>& count_sum) {
  const Totals<A> block = reduce_block(Totals<A>{loss_sum.total(), count_sum.total()});
  if (threadIdx.x == 0) {
    partial[2 * blockIdx.x] = block.loss;
    partial[2 * blockIdx.x + 1] = block.count;
  }
}

// The parts of `blocks` blocks, added in a fixed order; for a kernel of one block.
template <class A>
__device__ __forceinline__ Totals<A> add_partials(const A* partial, int blocks) {
  Sum<A> loss_sum{0, 0}, count_sum{0, 0};
  for (int i = threadIdx.x; i < blocks; i += blockDim.x) {
    loss_sum.add(partial[2 * i]);
    count_sum.add(partial[2 * i + 1]);
  }
  return reduce_block(Totals<A>{loss_sum.total(), count_sum.total()});
}

namespace {  // so that each source has its own

// One block: adds the partial sums of `blocks` blocks, and divides. No divisor: it is not kept.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const AccOf<T>* partial, int blocks, int reduction, int64_t count, AccOf<T>* divisor, T* loss) {
  using A = AccOf<T>;
  const Totals<A> all = add_partials(partial, blocks);
  if (threadIdx.x != 0) return;
  const A by = reduction == static_cast<int>(Reduction::kWeightedMean) ? all.count
               : reduction == static_cast<int>(Reduction::kSum)        ? A(1)
                                                                       : static_cast<A>(count);
  if (divisor) *divisor = by;
  narrow(all.loss / by, *loss);
}

// One block: adds the partial sums of `blocks` blocks, and divides a mean by the weights that they counted. No loss: it is not kept.
template <class A, class L>
__global__ void __launch_bounds__(kThreads)
    finish_counted_kernel(const A* partial, int blocks, int reduction, bool zero_empty, A* divisor, L* loss) {
  const Totals<A> all = add_partials(partial, blocks);
  if (threadIdx.x != 0) return;
  const bool mean = reduction == static_cast<int>(Reduction::kMean) || reduction == static_cast<int>(Reduction::kRowMean);
  // Over nothing: NaN whatever smoothing or z_loss have added, as in torch; or, divided by infinity, 0.
  const A nothing = zero_empty ? A(INFINITY) : A(NAN);
  const A by = !mean ? A(1) : all.count == A(0) ? nothing : all.count;
  *divisor = by;
  if (loss) narrow(AccOf<L>(all.loss / by), *loss);
}

}  // namespace
}  // namespace fastloss
