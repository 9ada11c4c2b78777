// The overlap engine on the CPU: one source, compiled once for each instruction set.
//
// A sample's pixels are swept in tiles that stay in the nearest caches with all their classes: the logits are read from memory once,
// as acc, and what follows is written once for contiguous pixels, channels last and any other strides.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <memory>

namespace fastloss {
namespace {

constexpr int64_t kMaxLanes = 256;          // pixels of a tile
constexpr int64_t kLeastLanes = 64;
constexpr int64_t kTileElements = 1 << 13;
constexpr int64_t kItemElements = 1 << 16;
constexpr int64_t kLeastItemPixels = 1024;  // so that the sums of an item are small beside its pixels

int64_t tile_lanes(const OverlapCall& c) {
  return std::clamp<int64_t>(kTileElements / std::max<int64_t>(c.classes, 1) / kLeastLanes * kLeastLanes, kLeastLanes, kMaxLanes);
}

int64_t item_pixels(const OverlapCall& c) {
  const int64_t lanes = tile_lanes(c), fitting = std::max(kItemElements / std::max<int64_t>(c.classes, 1), kLeastItemPixels);
  return (fitting + lanes - 1) / lanes * lanes;
}

template <class T, class F, bool kLabels>
struct Overlap {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  const OverlapCall& c;
  const int64_t lanes;            // of a whole tile, and from one class of it to the next
  std::unique_ptr<A[]> memory;    // two tiles
  A *const x_tile, *const e_tile;
  bool labels_known = true;

  alignas(64) A used[kMaxLanes];   // 1 where a pixel is in the tile and, with labels, counts
  alignas(64) A label[kMaxLanes];  // the class of each pixel as a number to compare with, -1 where no class is meant
  alignas(64) A max[kMaxLanes], inverse_sum[kMaxLanes], log_sum[kMaxLanes];
  alignas(64) A z_label[kMaxLanes];
  alignas(64) A target[kMaxLanes], out[kMaxLanes];

  explicit Overlap(const OverlapCall& call)
      : c(call), lanes(tile_lanes(call)), memory(new A[2 * call.classes * lanes + 64 / sizeof(A)]), x_tile(aligned(memory.get())),
        e_tile(x_tile + call.classes * lanes) {}

  static A* aligned(A* p) { return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(p) + 63) / 64 * 64); }

  // n numbers, `stride` apart, as acc; zeroes behind them up to the end of the tile. Fetches what lies `ahead` elements further.
  void load_lanes(const T* from, int64_t stride, int64_t ahead, int64_t n, A* to) const {
    if (stride == 1) {
      each_part<T>(n, from, [&](V v, int64_t j, int64_t count) {
        __builtin_prefetch(from + ahead + j);
        store(to + j, v, count);
      });
    } else {
      for (int64_t j = 0; j < n; ++j) to[j] = static_cast<A>(from[j * stride]);
    }
    std::fill(to + n, to + lanes, A(0));
  }

  void store_lanes(const A* from, T* to, int64_t stride, int64_t n) const {
    if (stride == 1) {
      narrow(from, to, n);
    } else {
      for (int64_t j = 0; j < n; ++j) to[j * stride] = static_cast<T>(from[j]);
    }
  }

  template <class Label>
  void read_labels(const Label* from, int64_t n) {
    const int64_t known = c.classes + c.first_label;
    for (int64_t j = 0; j < n; ++j) {
      const auto y = static_cast<int64_t>(from[j * c.target_strides[2]]);
      const bool counts = !c.has_ignore || y != c.ignore_index;
      if (counts && static_cast<uint64_t>(y) >= static_cast<uint64_t>(known)) labels_known = false;
      used[j] = counts;
      label[j] = counts ? static_cast<A>(y - c.first_label) : A(-1);
    }
  }

  void load_labels(int64_t sample, int64_t first, int64_t n) {
    std::fill(used, used + lanes, A(0));
    std::fill(label, label + lanes, A(-1));
    if constexpr (kLabels) {
      const char* from = static_cast<const char*>(c.target) + (sample * c.target_strides[0] + first * c.target_strides[2]) * c.label_bytes;
      switch (c.label_bytes) {
        case 1:
          return c.label_signed ? read_labels(reinterpret_cast<const int8_t*>(from), n)
                                : read_labels(reinterpret_cast<const uint8_t*>(from), n);
        case 2:
          return c.label_signed ? read_labels(reinterpret_cast<const int16_t*>(from), n)
                                : read_labels(reinterpret_cast<const uint16_t*>(from), n);
        case 4:
          return c.label_signed ? read_labels(reinterpret_cast<const int32_t*>(from), n)
                                : read_labels(reinterpret_cast<const uint32_t*>(from), n);
        default: return read_labels(reinterpret_cast<const int64_t*>(from), n);
      }
    } else {
      std::fill(used, used + n, A(1));
    }
  }

  void load_target(int64_t sample, int64_t k, int64_t first, int64_t n) {
    const auto& s = c.target_strides;
    load_lanes(static_cast<const T*>(c.target) + sample * s[0] + k * s[1] + first * s[2], s[2], s[1], n, target);
  }

  // visit(first lane) for each vector of the tile.
  template <class Visit>
  void each_lanes(int64_t n, const Visit& visit) const {
    for (int64_t j = 0; j < n; j += V::size()) visit(j);
  }

  // The target of class k and whether it counts; with numbers, target holds the class's.
  struct Goal {
    V t, counts;
  };
  Goal goal(int64_t j, V k) const {
    const V in_use = V(0) < V::loadu(used + j);
    if constexpr (kLabels) {
      return {select(V::loadu(label + j) == k, V(1), V(0)), in_use};
    } else {
      const V t = V::loadu(target + j);
      const V counts = c.has_ignore ? in_use & (t != V(static_cast<A>(c.ignore_index))) : in_use;
      return {select(counts, t, V(0)), counts};
    }
  }

  // The logits of a tile into x_tile; of a softmax also its exponentials into e_tile, and what belongs to a pixel.
  void load_tile(int64_t sample, int64_t first, int64_t n) {
    load_labels(sample, first, n);
    const auto& s = c.input_strides;
    const T* from = static_cast<const T*>(c.input) + sample * s[0] + first * s[2];
    const bool cut = kLabels && c.has_ignore;
    std::fill(max, max + lanes, -kInf<A>);
    std::fill(z_label, z_label + lanes, A(0));
    for (int64_t k = 0; k < c.classes; ++k) {
      A* const x = x_tile + k * lanes;
      load_lanes(from + k * s[1], s[2], k + 1 < c.classes ? s[1] : 0, n, x);
      if (!cut && !F::kSoftmax) continue;
      const V index(static_cast<A>(k));
      each_lanes(n, [&](int64_t j) {
        V z = V::loadu(x + j);
        if (cut) {
          z = select(V(0) < V::loadu(used + j), z, V(0));
          z.store(x + j);
        }
        if constexpr (F::kSoftmax) {
          larger(V::loadu(max + j), z).store(max + j);
          if constexpr (kLabels) {
            if constexpr (F::kTerm) select(V::loadu(label + j) == index, z, V::loadu(z_label + j)).store(z_label + j);
          }
        }
      });
    }
    if constexpr (F::kSoftmax) {
      LaneSums<A, kMaxLanes> sum;
      for (int64_t k = 0; k < c.classes; ++k) {
        each_lanes(n, [&](int64_t j) {
          const V e = exp(V::loadu(x_tile + k * lanes + j) - V::loadu(max + j));
          e.store(e_tile + k * lanes + j);
          sum.add(j, e, V::size());
        });
        if (sum.full(k)) sum.flush(lanes);
      }
      sum.flush(lanes);
      each_lanes(n, [&](int64_t j) {
        const V total = V::loadu(sum.total + j);
        (V(1) / total).store(inverse_sum + j);
        if constexpr (F::kTerm) log(total).store(log_sum + j);
      });
    }
  }

  // The pointwise loss of a softmax at each pixel's label, and its derivative, in place of the label's logit and of log_sum.
  void close_labels(int64_t n) {
    if constexpr (F::kSoftmax && kLabels) {
      if constexpr (F::kTerm) {
        each_lanes(n, [&](int64_t j) {
          const auto f = F::Term::eval((V::loadu(z_label + j) - V::loadu(max + j)) - V::loadu(log_sum + j), c.params);
          f.value.store(z_label + j);
          f.derivative.store(log_sum + j);
        });
      }
    }
  }

  struct Terms {
    V p, slope, loss, loss_input, loss_target;
  };

  // Probability and pointwise loss of class k; of a softmax, slope stays unused and loss_input is d loss / d log p.
  Terms terms(int64_t k, int64_t j, V t) const {
    if constexpr (F::kSoftmax) {
      const V p = V::loadu(e_tile + k * lanes + j) * V::loadu(inverse_sum + j);
      if constexpr (!F::kTerm) {
        return {p, V(0), V(0), V(0), V(0)};
      } else if constexpr (kLabels) {
        const V mine = V(0) < t;
        return {p, V(0), select(mine, V::loadu(z_label + j), V(0)), select(mine, V::loadu(log_sum + j), V(0)), V(0)};
      } else {
        const auto f = F::Term::eval((V::loadu(x_tile + k * lanes + j) - V::loadu(max + j)) - V::loadu(log_sum + j), c.params);
        return {p, V(0), t * f.value, t * f.derivative, f.value};
      }
    } else {
      const auto f = F::eval(V::loadu(x_tile + k * lanes + j), t, c.params);
      return {f.p, f.slope, f.loss, f.loss_input, f.loss_target};
    }
  }

  void forward_tile(int64_t sample, int64_t first, int64_t n, double* partials) {
    load_tile(sample, first, n);
    close_labels(n);
    for (int64_t k = 0; k < c.classes; ++k) {
      if constexpr (!kLabels) load_target(sample, k, first, n);
      V sums[kStatistics];
      for (V& sum : sums) sum = V(0);
      const V index(static_cast<A>(k));
      each_lanes(n, [&](int64_t j) {
        const auto [t, counts] = goal(j, index);
        const auto f = terms(k, j, t);
        const V p = select(counts, f.p, V(0));
        sums[kIntersection] = sums[kIntersection] + p * t;
        sums[kInput] = sums[kInput] + p;
        sums[kInputSquare] = sums[kInputSquare] + p * p;
        sums[kTarget] = sums[kTarget] + t;
        if constexpr (!kLabels) sums[kTargetSquare] = sums[kTargetSquare] + t * t;
        sums[kDifference] = sums[kDifference] + abs(p - t);
        sums[kLoss] = sums[kLoss] + select(counts, f.loss, V(0));
        sums[kCount] = sums[kCount] + select(counts, V(1), V(0));
      });
      if constexpr (kLabels) sums[kTargetSquare] = sums[kTarget];
      for (int s = 0; s < kStatistics; ++s) partials[k * kStatistics + s] += horizontal_sum(sums[s]);
    }
  }

  void backward_tile(int64_t sample, int64_t first, int64_t n) {
    load_tile(sample, first, n);
    close_labels(n);
    const A* const upstream = static_cast<const A*>(c.grad_statistics) + sample * c.classes * kStatistics;
    const auto at = [&](void* grad, const int64_t* strides, int64_t k) {
      return static_cast<T*>(grad) + sample * strides[0] + k * strides[1] + first * strides[2];
    };
    LaneSums<A, kMaxLanes> total;  // of softmax gradients with respect to log p
    for (int64_t k = 0; k < c.classes; ++k) {
      if constexpr (!kLabels) load_target(sample, k, first, n);
      const A* const u = upstream + k * kStatistics;
      const V index(static_cast<A>(k)), loss(u[kLoss]), by_both(u[kIntersection]), by_difference(u[kDifference]);
      each_lanes(n, [&](int64_t j) {
        const auto [t, counts] = goal(j, index);
        const auto f = terms(k, j, t);
        const V side = by_difference * sign(f.p - t);
        const V by_p = by_both * t + V(u[kInput]) + V(2 * u[kInputSquare]) * f.p + side;
        V g = (F::kSoftmax ? f.p : f.slope) * by_p + loss * f.loss_input;
        g = select(counts, g, V(0));
        g.store(x_tile + k * lanes + j);
        if constexpr (F::kSoftmax) total.add(j, g, V::size());
        if constexpr (!kLabels) {
          if (c.grad_target) {
            const V by_t = by_both * f.p + V(u[kTarget]) + V(2 * u[kTargetSquare]) * t - side + loss * f.loss_target;
            select(counts, by_t, V(0)).store(out + j);
          }
        }
      });
      if constexpr (!kLabels) {
        if (c.grad_target) store_lanes(out, at(c.grad_target, c.grad_target_strides, k), c.grad_target_strides[2], n);
      }
      if (F::kSoftmax && total.full(k)) total.flush(lanes);
    }
    if (!c.grad_input) return;
    if constexpr (F::kSoftmax) total.flush(lanes);
    for (int64_t k = 0; k < c.classes; ++k) {
      A* const g = x_tile + k * lanes;
      if constexpr (F::kSoftmax) {
        each_lanes(n, [&](int64_t j) {
          const V p = V::loadu(e_tile + k * lanes + j) * V::loadu(inverse_sum + j);
          const V gradient = V::loadu(g + j) - p * V::loadu(total.total + j);
          (kLabels ? select(V(0) < V::loadu(used + j), gradient, V(0)) : gradient).store(g + j);
        });
      }
      store_lanes(g, at(c.grad_input, c.grad_strides, k), c.grad_strides[2], n);
    }
  }

  template <class Visit>
  void each_tile(int64_t item, const Visit& visit) const {
    const int64_t step = item_pixels(c), items = (c.pixels + step - 1) / step;
    const int64_t sample = item / items, begin = item % items * step, end = std::min(c.pixels, begin + step);
    for (int64_t first = begin; first < end; first += lanes) visit(sample, first, std::min(lanes, end - first));
  }
};

template <class T, class F, bool kLabels>
bool run(const OverlapCall& call, int64_t begin, int64_t end, double* partials) {
  Overlap<T, F, kLabels> engine(call);
  for (int64_t item = begin; item < end; ++item) {
    engine.each_tile(item, [&](int64_t sample, int64_t first, int64_t n) {
      if (partials) engine.forward_tile(sample, first, n, partials + item * call.classes * kStatistics);
      else engine.backward_tile(sample, first, n);
    });
  }
  return engine.labels_known;
}

template <class T>
bool run(const OverlapCall& call, int functor, int64_t begin, int64_t end, double* partials) {
  int index = 0;
#define FASTLOSS_RUN(name, ...) \
  if (functor == index++) { \
    return call.label_bytes ? run<T, __VA_ARGS__, true>(call, begin, end, partials) \
                            : run<T, __VA_ARGS__, false>(call, begin, end, partials); \
  }
  FASTLOSS_OVERLAP(FASTLOSS_RUN)
#undef FASTLOSS_RUN
  return true;
}

bool run(const OverlapCall& call, Scalar scalar, int functor, int64_t begin, int64_t end, double* partials) {
  return with_type(scalar, [&](auto zero) { return run<decltype(zero)>(call, functor, begin, end, partials); });
}

}  // namespace

int64_t kernel::overlap_items(const OverlapCall& c) {
  const int64_t step = item_pixels(c);
  return c.samples * ((c.pixels + step - 1) / step);
}

bool kernel::overlap_forward(const OverlapCall& call, Scalar scalar, int functor, int64_t begin, int64_t end, double* partials) {
  return run(call, scalar, functor, begin, end, partials);
}

void kernel::overlap_backward(const OverlapCall& call, Scalar scalar, int functor, int64_t begin, int64_t end) {
  run(call, scalar, functor, begin, end, nullptr);
}

}  // namespace fastloss
