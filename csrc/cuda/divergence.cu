// The divergence engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// A warp or a block goes over both rows at once. A loss that is a mean under the second side is done in one sweep: maxima, sums of
// exponentials and the mean grow together, and what was summed before a maximum moved is corrected for the move.
#include "launch.h"

namespace fastloss {
namespace {

// The settings of a call in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Settings {
  A params[kMaxParams];
  A first_scale, second_scale, factor;
  int lanes;  // that share a row
  A* partial;
};

// What some classes of both rows add up to: exponentials below the maximum of each side, and h under the second one.
template <class A, class F>
struct Meeting {
  A scale1, scale2;  // of logits, which maxima are not multiplied by
  A max1, max2, sum1, sum2, mean;

  // How far the maximum of a side is below its new one, 0 while there was none, and what that multiplies exponentials by.
  struct Move {
    A by, shrink;
    __device__ Move(A from, A to, A scale) : by((from - Peak<A>::finite_shift(to)) * scale), shrink(exp(by)) {
      if (from == A(-INFINITY)) by = A(0);
    }
  };
  __device__ void raise(A top1, A top2) {
    const Move first(max1, top1, scale1), second(max2, top2, scale2);
    if constexpr (F::kMean) mean = second.shrink == A(0) ? A(0) : second.shrink * (mean + sum2 * F::h(first.by, second.by));
    sum1 *= first.shrink;
    sum2 *= second.shrink;
    max1 = top1;
    max2 = top2;
  }
  __device__ void merge(Meeting other) {
    const A top1 = larger(max1, other.max1), top2 = larger(max2, other.max2);
    raise(top1, top2);
    other.raise(top1, top2);
    sum1 += other.sum1;
    sum2 += other.sum2;
    mean += other.mean;
  }
};

// A Meeting that grows by a few classes at a time, its sums compensated.
template <class A, class F>
struct Growing {
  Meeting<A, F> high;
  A low1 = A(0), low2 = A(0), low_mean = A(0);

  __device__ explicit Growing(const Settings<A>& s)
      : high{s.first_scale, s.second_scale, A(-INFINITY), A(-INFINITY), A(0), A(0), A(0)} {}

  template <int N>
  __device__ void add(const A (&x)[N], const A (&y)[N]) {
    A top1 = high.max1, top2 = high.max2;
    for (int i = 0; i < N; ++i) {
      top1 = larger(top1, x[i]);
      top2 = larger(top2, y[i]);
    }
    if (top1 != high.max1 || top2 != high.max2) {
      Meeting<A, F> low{high.scale1, high.scale2, high.max1, high.max2, low1, low2, low_mean};
      low.raise(top1, top2);
      high.raise(top1, top2);
      low1 = low.sum1;
      low2 = low.sum2;
      low_mean = low.mean;
    }
    const A shift1 = Peak<A>::finite_shift(top1), shift2 = Peak<A>::finite_shift(top2);
    A part1 = A(0), part2 = A(0), part = A(0);
    for (int i = 0; i < N; ++i) {
      const A v = (x[i] - shift1) * high.scale1, u = (y[i] - shift2) * high.scale2, under = exp(u);
      part1 += exp(v);
      part2 += under;
      if constexpr (F::kMean) part += select(equal(under, A(0)), A(0), under * F::h(v, u));
    }
    add(high.sum1, low1, part1);
    add(high.sum2, low2, part2);
    if constexpr (F::kMean) add(high.mean, low_mean, part);
  }
  __device__ static void add(A& sum, A& lost, A part) {
    Sum<A> both{sum, lost};
    both.add(part);
    sum = both.high;
    lost = both.low;
  }
  __device__ Meeting<A, F> total() const {
    Meeting<A, F> all = high;
    all.sum1 = Sum<A>{high.sum1, low1}.total();
    all.sum2 = Sum<A>{high.sum2, low2}.total();
    all.mean = Sum<A>{high.mean, low_mean}.total();
    return all;
  }
};

// Both rows of a pair.
template <class T>
struct Rows {
  using A = AccOf<T>;
  const T *first, *second;
  const A* centre;

  __device__ Rows(const DivergenceCall& c, int64_t r)
      : first(static_cast<const T*>(c.first) + r * c.first_stride), second(static_cast<const T*>(c.second) + r * c.second_stride),
        centre(static_cast<const A*>(c.centre)) {}

  // visit(first class, logits of the first side, centred ones of the second)
  template <class Visit>
  __device__ void sweep(const Contiguous& layout, int64_t classes, Visit visit) const {
    layout.sweep(first, 1, classes, always, [&](auto& chunk) {
      constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
      A y[kCount];
      Contiguous::load(second, 1, chunk.first, y);
      if (centre) {
        for (int i = 0; i < kCount; ++i) y[i] -= centre[chunk.first + i];
      }
      visit(chunk.first, chunk.values, y);
    });
  }
};

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const DivergenceCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const Contiguous layout(s.lanes);
  const int64_t groups = blockDim.x / s.lanes;
  const A* weight = static_cast<const A*>(call.weight);
  A* stats = static_cast<A*>(call.stats);
  Sum<A> loss_sum{0, 0}, count_sum{0, 0};

  for (int64_t r = blockIdx.x * groups + threadIdx.x / s.lanes; r < call.rows; r += gridDim.x * groups) {
    const A share = weight ? weight[r] : A(1);
    A stat[kDivergenceStats] = {}, value = A(0);
    if (share != A(0)) {
      const Rows<T> rows(call, r);
      Growing<A, F> growing(s);
      rows.sweep(layout, call.classes, [&](int64_t, auto& x, auto& y) { growing.add(x, y); });
      const auto all = layout.reduce(growing.total());
      stat[kFirstMax] = all.max1;
      stat[kSecondMax] = all.max2;
      stat[kFirstLogSum] = log(all.sum1);
      stat[kSecondLogSum] = log(all.sum2);
      if constexpr (F::kMean) {
        stat[kFirstSlope] = A(-1);
        stat[kSecondSlope] = all.mean / all.sum2;
        value = stat[kSecondSlope] + F::h(-stat[kFirstLogSum], -stat[kSecondLogSum]);
      } else {
        Sum<A> sums[3] = {{0, 0}, {0, 0}, {0, 0}};
        rows.sweep(layout, call.classes, [&](int64_t, auto& x, auto& y) {
          A part[3] = {A(0), A(0), A(0)};
          for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(A)); ++i) {
            const A l = (x[i] - stat[kFirstMax]) * s.first_scale - stat[kFirstLogSum];
            const A m = (y[i] - stat[kSecondMax]) * s.second_scale - stat[kSecondLogSum];
            const auto at = F::eval(l, m, exp(l), exp(m), s.params);
            part[0] += at.value;
            part[1] += at.first;
            part[2] += at.second;
          }
          for (int k = 0; k < 3; ++k) sums[k].add(part[k]);
        });
        const auto terms = layout.reduce(Terms<A>{sums[0].total(), sums[1].total(), sums[2].total()});
        value = terms.loss;
        stat[kFirstSlope] = terms.slope;
        stat[kSecondSlope] = terms.entropy;
      }
      value *= s.factor * share;
    }
    if (layout.lane != 0) continue;
    for (int which = 0; which < kDivergenceStats; ++which) stats[which * call.rows + r] = stat[which];
    if (call.row_loss) static_cast<A*>(call.row_loss)[r] = value;
    loss_sum.add(value);
    count_sum.add(share);
  }
  leave_partial(s.partial, loss_sum, count_sum);
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const DivergenceCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const Contiguous layout(s.lanes);
  const int64_t groups = blockDim.x / s.lanes;
  const A* weight = static_cast<const A*>(call.weight);
  const A* stats = static_cast<const A*>(call.stats);
  const A* grad_loss = static_cast<const A*>(call.grad_loss);
  const bool each = call.reduction == static_cast<int>(Reduction::kNone);
  const bool mean = call.reduction == static_cast<int>(Reduction::kMean);
  const A shared_grad = each ? A(0) : mean ? grad_loss[0] / *static_cast<const A*>(call.divisor) : grad_loss[0];

  for (int64_t r = blockIdx.x * groups + threadIdx.x / s.lanes; r < call.rows; r += gridDim.x * groups) {
    T* to_first = call.grad_first ? static_cast<T*>(call.grad_first) + r * call.classes : nullptr;
    T* to_second = call.grad_second ? static_cast<T*>(call.grad_second) + r * call.classes : nullptr;
    const A share = weight ? weight[r] : A(1);
    if (share == A(0)) {
      for (int64_t c = layout.lane; c < call.classes; c += s.lanes) {
        if (to_first) narrow(A(0), to_first[c]);
        if (to_second) narrow(A(0), to_second[c]);
      }
      continue;
    }
    A stat[kDivergenceStats];
    for (int which = 0; which < kDivergenceStats; ++which) stat[which] = stats[which * call.rows + r];
    const A g = (each ? grad_loss[r] : shared_grad) * s.factor * share;
    const A back1 = g * s.first_scale, back2 = g * s.second_scale;
    Rows<T>(call, r).sweep(layout, call.classes, [&](int64_t first, auto& x, auto& y) {
      for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(A)); ++i) {
        const auto grad = divergence_gradient<F>(
            (x[i] - stat[kFirstMax]) * s.first_scale, (y[i] - stat[kSecondMax]) * s.second_scale, stat[kFirstLogSum],
            stat[kSecondLogSum], stat[kFirstSlope], stat[kSecondSlope], s.params);
        x[i] = back1 * grad.first;
        y[i] = back2 * grad.second;
      }
      if (to_first) Contiguous::store(to_first, 1, first, x);
      if (to_second) Contiguous::store(to_second, 1, first, y);
    });
  }
}

template <class T, class F>
void run(bool forward, const DivergenceCall& call, const DivergenceLaunch& launch) {
  using A = AccOf<T>;
  Settings<A> s{};
  for (int i = 0; i < kMaxParams; ++i) s.params[i] = static_cast<A>(call.params[i]);
  s.first_scale = static_cast<A>(call.first_scale);
  s.second_scale = static_cast<A>(call.second_scale);
  s.factor = static_cast<A>(call.factor);
  s.partial = static_cast<A*>(launch.partial);
  s.lanes = call.classes <= kWarpPacks * Pack<T>::kCount ? kLanes : kThreads;
  const Grid grid(call.rows * s.lanes);
  start(forward ? forward_kernel<T, F> : backward_kernel<T, F>, grid.blocks, grid.threads, launch.stream, call, s);
  if (!forward) return;
  with_type(launch.loss_scalar, [&](auto zero) {
    using L = decltype(zero);
    start(finish_counted_kernel<A, L>, 1, kThreads, launch.stream, static_cast<const A*>(s.partial), static_cast<int>(grid.blocks),
          call.reduction, call.zero_empty != 0, static_cast<A*>(call.divisor), static_cast<L*>(launch.loss));
  });
}

void dispatch(bool forward, const DivergenceCall& call, const DivergenceLaunch& launch) {
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) { \
    return with_type(launch.scalar, [&](auto zero) { run<decltype(zero), Functor>(forward, call, launch); }); \
  }
  FASTLOSS_DIVERGENCE(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no divergence named ") + launch.functor);
}

}  // namespace

void divergence_forward(const DivergenceCall& call, const DivergenceLaunch& launch) { dispatch(true, call, launch); }
void divergence_backward(const DivergenceCall& call, const DivergenceLaunch& launch) { dispatch(false, call, launch); }

}  // namespace fastloss
