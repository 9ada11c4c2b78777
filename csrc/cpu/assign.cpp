// The assignment of anchors to objects on the CPU: one source, compiled once for each instruction set.
//
// Objects are taken one after the other: a vector compares one with as many anchors as it has lanes, and most vectors hold no anchor
// that matters to it.

#define FASTLOSS_VECTORIZED
#include "kernels.h"
#include "sweep.h"

#include <cmath>
#include <vector>

namespace fastloss {
namespace {

template <class T>
struct Image {
  using A = acc_of<T>;
  using V = Vectorized<A>;

  struct Entry {
    A value;
    int64_t anchor;
    A iou;
    // A heap by this has the worst on top: the smallest, and of equal ones the last.
    bool operator<(const Entry& other) const { return value > other.value || (value == other.value && anchor < other.anchor); }
  };

  const AssignCall& c;
  int64_t image = 0;
  const A* boxes = nullptr;
  A* weight = nullptr;  // while objects are gone through, what an anchor is worth to its object
  int64_t* index = nullptr;
  std::vector<A> key;  // of each anchor what its object was chosen by
  std::vector<Entry> top;
  std::vector<A> most_worth, most_iou;
  alignas(64) A lanes[V::size()], marks[V::size()];

  explicit Image(const AssignCall& call) : c(call), key(call.anchors) {}

  Box<V> load_boxes(int64_t a, int64_t n) const {
    return {load(boxes + a, n), load(boxes + c.anchors + a, n), load(boxes + 2 * c.anchors + a, n), load(boxes + 3 * c.anchors + a, n)};
  }
  A score(int64_t a, int64_t label) const {
    const T* scores = static_cast<const T*>(c.scores);
    const A x = static_cast<A>(scores[image * c.image_stride + a * c.anchor_stride + label * c.class_stride]);
    return c.logits ? sigmoid(x).p : x;
  }
  static V complete_iou(const Box<V>& a, const Box<V>& b) {
    constexpr double eps[2] = {kAssignEps, kAssignEps};
    return box_slopes<CompleteBoxIou>(a, b, eps).score;
  }

  // Anchors come in order, so that of equal ones the first stay. NaN is no candidate.
  void offer(A value, int64_t a, A iou) {
    const auto full = static_cast<int64_t>(top.size()) == c.topk;
    if (!(value == value) || (full && !(value > top.front().value))) return;
    if (full) {
      std::pop_heap(top.begin(), top.end());
      top.back() = {value, a, iou};
    } else {
      top.push_back({value, a, iou});
    }
    std::push_heap(top.begin(), top.end());
  }
  void take(int64_t a, int64_t object, A by, A worth) {
    if (!(by > key[a])) return;
    key[a] = by;
    index[a] = object;
    weight[a] = worth;
  }

  void additive(int64_t object, const Box<V>& box, int64_t label) {
    const A alpha(c.alpha), beta(c.beta);
    const auto worth = [&](int64_t a, A complete) { return alpha * score(a, label) + beta * complete; };
    sweep(box, [&](int64_t a, int64_t n, const Box<V>& predicted, V inside) {
      const V iou = Overlap<V>(predicted, box, V(A(kAssignEps))).iou;
      if (static_cast<int64_t>(top.size()) < c.topk || any(less(V(top.front().value), iou))) {
        iou.store(lanes);
        for (int64_t k = 0; k < n; ++k) offer(lanes[k], a + k, lanes[k]);
      }
      if (!any(inside)) return;
      complete_iou(predicted, box).store(lanes);
      select(inside, V(1), V(0)).store(marks);
      for (int64_t k = 0; k < n; ++k) {
        if (marks[k] == 0) continue;
        const A value = worth(a + k, lanes[k]);
        take(a + k, object, value, value);
      }
    });
    for (const Entry& entry : top) {
      const A* from = boxes + entry.anchor;
      complete_iou({V(from[0]), V(from[c.anchors]), V(from[2 * c.anchors]), V(from[3 * c.anchors])}, box).store(lanes);
      const A value = worth(entry.anchor, lanes[0]);
      take(entry.anchor, object, value, value);
    }
  }

  void multiplicative(int64_t object, const Box<V>& box, int64_t label) {
    const A alpha(c.alpha), beta(c.beta);
    sweep(box, [&](int64_t a, int64_t n, const Box<V>& predicted, V inside) {
      if (!any(inside)) return;
      select(inside, Overlap<V>(predicted, box, V(A(kAssignEps))).iou, V(0)).store(lanes);
      for (int64_t k = 0; k < n; ++k) {
        if (!(lanes[k] > 0)) continue;
        const A value = std::pow(score(a + k, label), alpha) * std::pow(lanes[k], beta);
        if (value > 0) offer(value, a + k, lanes[k]);
      }
    });
    for (const Entry& entry : top) take(entry.anchor, object, entry.iou, entry.value);
  }

  // f(first anchor, how many, their boxes, whether their points are inside of the object's box)
  template <class F>
  void sweep(const Box<V>& box, const F& f) {
    const A* points = static_cast<const A*>(c.points);
    each_vector<A>(c.anchors, [&](int64_t a, int64_t n) {
      const V x = load(points + a, n), y = load(points + c.anchors + a, n);
      f(a, n, load_boxes(a, n), (box.x1 <= x) & (x <= box.x2) & (box.y1 <= y) & (y <= box.y2));
    });
  }

  void run(int64_t which) {
    image = which;
    boxes = static_cast<const A*>(c.boxes) + 4 * image * c.anchors;
    weight = static_cast<A*>(c.weight) + image * c.anchors;
    index = c.index + image * c.anchors;
    std::fill(key.begin(), key.end(), A(0));
    std::fill(weight, weight + c.anchors, A(0));
    std::fill(index, index + c.anchors, int64_t{-1});
    for (int64_t object = 0; object < c.objects; ++object) {
      const int64_t place = image * c.objects + object;
      if (!c.valid[place]) continue;
      const A* truth = static_cast<const A*>(c.truth) + 4 * place;
      const Box<V> box{V(truth[0]), V(truth[1]), V(truth[2]), V(truth[3])};
      top.clear();
      if (c.additive) additive(object, box, c.labels[place]);
      else multiplicative(object, box, c.labels[place]);
    }
    if (c.additive) {
      for (int64_t a = 0; a < c.anchors; ++a) weight[a] = index[a] >= 0;
    } else {
      normalise();
    }
  }

  void normalise() {
    most_worth.assign(c.objects, A(0));
    most_iou.assign(c.objects, A(0));
    for (int64_t a = 0; a < c.anchors; ++a) {
      if (index[a] < 0) continue;
      most_worth[index[a]] = std::max(most_worth[index[a]], weight[a]);
      most_iou[index[a]] = std::max(most_iou[index[a]], key[a]);
    }
    for (int64_t a = 0; a < c.anchors; ++a) {
      if (index[a] >= 0) weight[a] = weight[a] * most_iou[index[a]] / (most_worth[index[a]] + A(kAssignLeast));
    }
  }
};

}  // namespace

void kernel::assign(const AssignCall& call, Scalar scores, int64_t begin, int64_t end) {
  const auto run = [&](auto zero) {
    Image<decltype(zero)> image(call);
    for (int64_t i = begin; i < end; ++i) image.run(i);
  };
  switch (scores) {
    case Scalar::kFloat: return run(float{});
    case Scalar::kDouble: return run(double{});
    case Scalar::kBFloat16: return run(c10::BFloat16{});
    case Scalar::kHalf: return run(c10::Half{});
  }
}

}  // namespace fastloss
