// The sort engine on the CPU: the sweeps over scores before and after the sort. One source, compiled once for each instruction set;
// sort_ops.cpp sorts and weighs between them.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <cstring>

namespace fastloss {
namespace {

constexpr int64_t kTile = 512;  // elements whose numbers stay in the first-level cache while channels pass by

template <class T, class F>
struct Sort {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  const SortCall& c;
  int64_t elements;

  explicit Sort(const SortCall& call) : c(call), elements(call.images * call.inner) {}

  const T* scores(int64_t element, int64_t channel) const {
    const int64_t image = element / c.inner;
    return static_cast<const T*>(c.input) + image * c.image_stride + channel * c.channel_stride + (element - image * c.inner);
  }
  const A* peaks() const { return static_cast<const A*>(c.stats); }
  const A* inverses() const { return peaks() + elements; }

  // visit(first, count) over tiles that do not cross images.
  template <class Visit>
  void each_tile(int64_t begin, int64_t end, const Visit& visit) const {
    while (begin < end) {
      const int64_t n = std::min({kTile, end - begin, c.inner - begin % c.inner});
      visit(begin, n);
      begin += n;
    }
  }

  // each(probabilities or scores, first element of the vector, its number of elements) of one channel of a tile.
  template <class Each>
  inline void each_score(int64_t first, int64_t n, int64_t channel, const Each& each) const {
    each_part<T>(n, scores(first, channel), [&](V x, int64_t i, int64_t count) {
      if constexpr (F::kNormalise) x = exp(x - load(peaks() + first + i, count)) * load(inverses() + first + i, count);
      each(x, i, count);
    });
  }

  void statistics(int64_t begin, int64_t end) const {
    alignas(64) A top[kTile], sum[kTile];
    each_tile(begin, end, [&](int64_t first, int64_t n) {
      std::fill_n(top, n, -kInf<A>);
      std::fill_n(sum, n, A(0));
      const auto sweep = [&](const auto& each) {
        for (int64_t channel = 0; channel < c.channels; ++channel) each_part<T>(n, scores(first, channel), each);
      };
      sweep([&](V x, int64_t i, int64_t count) { store(top + i, larger(load(top + i, count), x), count); });
      sweep([&](V x, int64_t i, int64_t count) { store(sum + i, load(sum + i, count) + exp(x - load(top + i, count)), count); });
      A* const peak = static_cast<A*>(c.stats) + first;
      std::copy_n(top, n, peak);
      for (int64_t i = 0; i < n; ++i) peak[elements + i] = A(1) / sum[i];
    });
  }

  // 1 where an element is foreground of class k, 0 where it is not, -1 where it takes no part.
  void foreground(int64_t first, int64_t n, int64_t k, A* to) const {
    const auto fill = [&](const auto* labels) {
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(labels[i]) == k ? A(1) : A(0);
      if (!c.labels.ignores) return;
      for (int64_t i = 0; i < n; ++i) to[i] = static_cast<int64_t>(labels[i]) == c.labels.ignored ? A(-1) : to[i];
    };
    if (c.labels.wide) fill(static_cast<const int64_t*>(c.labels.data) + first);
    else fill(static_cast<const uint8_t*>(c.labels.data) + first);
  }

  template <class Key, class Tag>
  SortKeys keys(int64_t group, int64_t row, int64_t begin, int64_t end, SortEntry<Key, Tag>* to) const {
    alignas(64) A errors[kTile], labels[kTile];
    SortKeys found{0, 0};
    const int64_t start = group * c.size, k = c.class_of(row), channel = c.channel_of(row);
    Key bits = 0;
    each_tile(start + begin, start + end, [&](int64_t first, int64_t n) {
      foreground(first, n, k, labels);
      each_score(first, n, channel, [&](V score, int64_t i, int64_t count) {
        store(errors + i, F::eval(score, load(labels + i, count)).value, count);
      });
      for (int64_t i = 0; i < n; ++i) {
        Key key;
        std::memcpy(&key, &errors[i], sizeof key);
        key &= std::numeric_limits<Key>::max() >> 1;
        const bool kept = !(errors[i] <= A(0)) & (labels[i] >= A(0));  // NaN is kept, so that it shows
        to[found.count] = {key, static_cast<Tag>((first - start + i) << 1 | (labels[i] == A(1)))};
        found.count += kept;
        bits |= kept ? key : Key(0);
      }
    });
    found.bits = bits;
    return found;
  }

  void backward(int64_t begin, int64_t end) const {
    alignas(64) A dot[kTile], labels[kTile];
    const V upstream(*static_cast<const A*>(c.grad_loss));
    each_tile(begin, end, [&](int64_t first, int64_t n) {
      const int64_t group = first / c.size, image = first / c.inner;
      const A* const shares = static_cast<const A*>(c.shares) + group * c.rows;
      const auto slopes = [&](int64_t row) {
        return static_cast<const A*>(c.slopes) + (group * c.rows + row - group) * c.size + first;
      };
      // d loss / d score of a vector, from its label.
      const auto slope = [&](int64_t row, V score, int64_t i, int64_t count) {
        return load(slopes(row) + i, count) * V(shares[row]) * F::eval(score, load(labels + i, count)).derivative;
      };
      std::fill_n(dot, n, A(0));
      if constexpr (F::kNormalise) {
        for (int64_t row = 0; row < c.rows; ++row) {
          foreground(first, n, c.class_of(row), labels);
          each_score(first, n, c.channel_of(row), [&](V p, int64_t i, int64_t count) {
            store(dot + i, load(dot + i, count) + p * slope(row, p, i, count), count);
          });
        }
      }
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const int64_t row = c.row_of(channel);
        T* const grad = static_cast<T*>(c.grad) + (image * c.channels + channel) * c.inner + first - image * c.inner;
        foreground(first, n, row < 0 ? -1 : c.class_of(row), labels);
        alignas(64) A found[kTile];
        each_score(first, n, channel, [&](V score, int64_t i, int64_t count) {
          V g = row < 0 ? V(0) : slope(row, score, i, count);
          if constexpr (F::kNormalise) g = score * (g - load(dot + i, count));
          const V label = load(labels + i, count);
          store(found + i, select(less(label, V(0)), V(0), upstream * g), count);
        });
        each_vector<T>(n, [&](int64_t i, int64_t count) {
          constexpr int64_t width = V::size();
          Parted<T> parts;
          for (int p = 0; p < kParts<T>; ++p) {
            const int64_t left = std::clamp<int64_t>(count - p * width, 0, width);
            parts[p] = left > 0 ? load(found + i + p * width, left) : V(0);
          }
          store_parts(grad + i, parts, count);
        });
      }
    });
  }
};

// run(the engine for the call's type and errors)
template <class Run>
void with_engine(const SortCall& call, Scalar scalar, int errors, const Run& run) {
  with_type(scalar, [&](auto zero) {
    using T = decltype(zero);
    int index = 0;
#define FASTLOSS_RUN(name, Functor) \
  if (errors == index++) return run(Sort<T, Functor>(call));
    FASTLOSS_SORT(FASTLOSS_RUN)
#undef FASTLOSS_RUN
  });
}

}  // namespace

void kernel::sort_statistics(const SortCall& call, Scalar scalar, int errors, int64_t begin, int64_t end) {
  with_engine(call, scalar, errors, [&](const auto& engine) { engine.statistics(begin, end); });
}

SortKeys kernel::sort_keys(const SortCall& call, Scalar scalar, int errors, int64_t group, int64_t row, int64_t begin, int64_t end,
                           bool wide, void* entries) {
  SortKeys found{};
  with_engine(call, scalar, errors, [&](const auto& engine) {
    using Key = std::conditional_t<sizeof(typename std::decay_t<decltype(engine)>::A) == 8, uint64_t, uint32_t>;
    if (wide) found = engine.keys(group, row, begin, end, static_cast<SortEntry<Key, uint64_t>*>(entries));
    else found = engine.keys(group, row, begin, end, static_cast<SortEntry<Key, uint32_t>*>(entries));
  });
  return found;
}

void kernel::sort_backward(const SortCall& call, Scalar scalar, int errors, int64_t begin, int64_t end) {
  with_engine(call, scalar, errors, [&](const auto& engine) { engine.backward(begin, end); });
}

}  // namespace fastloss
