// The row engine on CUDA devices; compiled by the host compiler, host_simt.h runs the same kernels on CPU tensors.
//
// Each block leaves one partial sum of losses, and a last block adds these in a fixed order: the same bits from run to run.
#include "launch.h"

namespace fastloss {
namespace {

// The settings of a call in the kernel's own precision: single-precision kernels never touch a double.
template <class A>
struct Settings {
  A params[kMaxParams];
  A keep, spread;  // target distribution q = keep * target + spread
  A z_loss, softcap, inverse_softcap, logit_scale;
  bool stablemax;
  int64_t rows;
  int lanes;  // that share a row
  A* partial;
};

template <class F, bool kPlain, class A>
__device__ __forceinline__ A transform(A x, const Settings<A>& s) {
  const A z = x * s.logit_scale;
  if constexpr (kPlain) return z;
  if constexpr (F::kStablemax) {
    if (s.stablemax) return symlog(z);
  }
  return s.softcap == A(0) ? z : s.softcap * tanh(z * s.inverse_softcap);
}

// kPlain: no softcap, no stablemax, no label smoothing, no entropy; hard targets.
template <class T, class F, bool kSoft, bool kPlain, class Layout>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const RowCall call, const Settings<AccOf<T>> s) {
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
        for (A& z : chunk.values) z = transform<F, kPlain>(z, s);
        online.add(chunk.values);
      });
      const auto peak = layout.reduce(Peak<A>{online.max, online.sum.total()});
      max = peak.max;
      log_sum = log(peak.sum);
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
    Sum<A> loss{0, 0}, slope{0, 0}, entropy{0, 0};
    Best<A> best{A(-INFINITY), INT64_MAX};
    const bool everywhere = kSoft || s.spread != A(0);
    if (!kPlain && (everywhere || call.entropy)) {
      layout.sweep(row, call.class_stride, call.classes, always, [&](auto& chunk) {
        constexpr int kCount = std::remove_reference_t<decltype(chunk)>::kCount;
        A target[kCount] = {};
        if constexpr (kSoft) layout.load(target_row, call.target_class_stride, chunk.first, target);
        Terms<A> part{0, 0, 0};
        for (int i = 0; i < kCount; ++i) {
          const int64_t c = chunk.first + i;
          const A z = transform<F, kPlain>(chunk.values[i], s);
          if (everywhere) {
            const Slope<A> point = F::eval(log_prob(z), s.params);
            const A share = (kSoft ? s.keep * target[i] + s.spread : s.spread) * (weight ? weight[c] : A(1));
            part.loss += share * point.value;
            part.slope += share * point.derivative;
          }
          if (call.entropy) {
            const A l = z - max - log_sum;
            part.entropy -= exp(l) * larger(A(-1e4), l);
          }
          if constexpr (kSoft) best.merge({target[i], c});
        }
        loss.add(part.loss);
        slope.add(part.slope);
        entropy.add(part.entropy);
      });
      terms = layout.reduce(Terms<A>{loss.total(), slope.total(), entropy.total()});
      if (kSoft && call.accuracy) best = layout.reduce(best);
    }
    if (!leader) continue;

    A count = counts ? A(1) : A(0), target_logit = A(NAN);
    if constexpr (kSoft) {
      if (call.accuracy && best.index < call.classes) {
        target_logit = transform<F, kPlain>(widen(row[best.index * call.class_stride]), s);
      }
    } else if (!counts) {
      terms.loss = terms.slope = A(0);
    } else if (!valid) {
      terms.loss = terms.slope = A(NAN);  // no class to read: the row poisons the loss and its gradient
    } else {
      target_logit = transform<F, kPlain>(widen(row[label * call.class_stride]), s);
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
    if (call.accuracy) {
      bool correct = counts && target_logit >= max;
      // NaN is larger than any number. The maximum skips it; the sum has it, but is NaN also where the maximum is infinite: there a lane
      // looks.
      if (correct && log_sum != log_sum) {
        correct = max == A(INFINITY);
        for (int64_t c = 0; correct && c < call.classes; ++c) {
          const A z = transform<F, kPlain>(widen(row[c * call.class_stride]), s);
          correct = z == z;
        }
      }
      static_cast<A*>(call.accuracy)[r] = correct ? A(1) : A(0);
    }
    if (call.row_loss) static_cast<A*>(call.row_loss)[r] = terms.loss;
    loss_sum.add(terms.loss);
    count_sum.add(count);
  }

  leave_partial(s.partial, loss_sum, count_sum);
}

template <class T, class F, bool kSoft, bool kPlain, class Layout>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const RowCall call, const Settings<AccOf<T>> s) {
  using A = AccOf<T>;
  const Layout layout(s.lanes);
  const int64_t groups = blockDim.x / s.lanes;
  const A* weight = static_cast<const A*>(call.weight);
  const A* grad_loss = static_cast<const A*>(call.grad_loss);
  const bool each = call.reduction == static_cast<int>(Reduction::kNone);
  const bool everywhere = kSoft || (!kPlain && s.spread != A(0));
  const A shared_grad = grad_loss && !each ? grad_loss[0] / *static_cast<const A*>(call.divisor) : A(0);

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
      g = each ? grad_loss[r] : shared_grad;
      pull = -g * static_cast<const A*>(call.slope)[r];
      if (s.z_loss != A(0)) pull += A(2) * s.z_loss * (max + log_sum) * g;
    }
    if (call.grad_lse) pull += static_cast<const A*>(call.grad_lse)[r];
    const bool has_entropy = !kPlain && call.grad_entropy;
    const A grad_entropy = has_entropy ? static_cast<const A*>(call.grad_entropy)[r] : A(0);
    const A entropy = has_entropy ? static_cast<const A*>(call.entropy)[r] : A(0);

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
        const A z = transform<F, kPlain>(chunk.values[i], s);
        const A l = F::kNormalise ? z - max - log_sum : z;
        A dz = A(0);
        if (F::kNormalise && any) {
          const A p = exp(l);
          dz = p * pull;
          if (has_entropy) dz -= grad_entropy * p * (larger(A(-1e4), l) + entropy);
        }
        if (counts && (everywhere || c == label)) {
          const A q = kSoft ? s.keep * target[i] + s.spread : c == label ? s.keep + s.spread : s.spread;
          const A share = q * (weight ? weight[c] : A(1));
          dz += g * (share * F::eval(l, s.params).derivative);
        }
        if (any) dz *= s.logit_scale;
        if (F::kStablemax && !kPlain && any && s.stablemax) dz *= exp(-abs(z));
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

// Whether classes are neighbours in all that is read and written along a row.
bool contiguous(const RowCall& call, const RowLaunch& launch) {
  return call.inner == 1 && call.class_stride == 1 && (!launch.soft || call.target_class_stride == 1) &&
         (call.grad == nullptr || call.grad_class_stride == 1);
}

template <class A>
Settings<A> settings(const RowCall& call, const RowLaunch& launch, int64_t pack) {
  Settings<A> s{};
  for (int i = 0; i < kMaxParams; ++i) s.params[i] = static_cast<A>(call.params[i]);
  s.keep = static_cast<A>(1.0 - call.label_smoothing);
  s.spread = call.label_smoothing == 0.0 || call.classes == 0 ? A(0) : static_cast<A>(call.label_smoothing / call.classes);
  s.z_loss = static_cast<A>(call.z_loss);
  s.softcap = static_cast<A>(call.softcap);
  s.inverse_softcap = call.softcap == 0.0 ? A(0) : static_cast<A>(1.0 / call.softcap);
  s.logit_scale = static_cast<A>(call.logit_scale);
  s.stablemax = call.stablemax != 0;
  s.rows = call.outer * call.inner;
  s.partial = static_cast<A*>(launch.partial);
  s.lanes = !contiguous(call, launch) ? 1 : call.classes <= kWarpPacks * pack ? kLanes : kThreads;
  return s;
}

template <class T, class F, bool kSoft, bool kPlain>
void run(bool forward, const RowCall& call, const RowLaunch& launch) {
  const auto s = settings<AccOf<T>>(call, launch, Pack<T>::kCount);
  const Grid grid(s.rows * s.lanes);
  if (contiguous(call, launch)) {
    start(forward ? forward_kernel<T, F, kSoft, kPlain, Contiguous> : backward_kernel<T, F, kSoft, kPlain, Contiguous>, grid.blocks,
          grid.threads, launch.stream, call, s);
  } else {
    start(forward ? forward_kernel<T, F, kSoft, kPlain, Strided> : backward_kernel<T, F, kSoft, kPlain, Strided>, grid.blocks,
          grid.threads, launch.stream, call, s);
  }
  if (!forward) return;
  const auto finish = [&](auto* loss) {
    using L = std::remove_pointer_t<decltype(loss)>;
    start(finish_counted_kernel<AccOf<T>, L>, 1, kThreads, launch.stream, static_cast<const AccOf<T>*>(s.partial),
          static_cast<int>(grid.blocks), call.reduction, call.zero_empty != 0, static_cast<AccOf<T>*>(call.divisor), loss);
  };
  with_type(launch.loss_scalar, [&](auto zero) { finish(static_cast<decltype(zero)*>(launch.loss)); });
}

template <class F>
void choose(bool forward, const RowCall& call, const RowLaunch& launch) {
  const bool plain =
      call.softcap == 0.0 && !call.stablemax && call.label_smoothing == 0.0 && !call.entropy && !call.grad_entropy;
  if (call.stablemax && !F::kStablemax) throw std::runtime_error(std::string("fastloss: no stablemax for ") + launch.functor);
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    if (launch.soft) return run<T, F, true, false>(forward, call, launch);
    // A kernel of its own only where it pays: each costs a second to compile.
    if constexpr (F::kNormalise && !std::is_same_v<T, double>) {
      if (plain) return run<T, F, false, true>(forward, call, launch);
    }
    run<T, F, false, false>(forward, call, launch);
  };
  with_type(launch.scalar, typed);
}

void dispatch(bool forward, const RowCall& call, const RowLaunch& launch) {
#define FASTLOSS_CHOOSE(name, Functor) \
  if (std::strcmp(launch.functor, #name) == 0) return choose<Functor>(forward, call, launch);
  FASTLOSS_ROW(FASTLOSS_CHOOSE)
#undef FASTLOSS_CHOOSE
  throw std::runtime_error(std::string("fastloss: the cuda backend has no row loss named ") + launch.functor);
}

}  // namespace

int64_t max_blocks() { return kMaxBlocks; }
void row_forward(const RowCall& call, const RowLaunch& launch) { dispatch(true, call, launch); }
void row_backward(const RowCall& call, const RowLaunch& launch) { dispatch(false, call, launch); }

}  // namespace fastloss
