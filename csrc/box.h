// Losses of the box engine, and the descriptions of one call that every compiled backend takes.
//
// Each is 1 - IoU of two boxes (x1, y1, x2, y2) plus a penalty. All are symmetric in the two boxes, so the derivative with respect
// to the second is the derivative with respect to the first of the swapped call.
#pragma once

#include "math.h"

namespace fastloss {

template <class V>
struct Box {
  V x1, y1, x2, y2;
};

// A loss, and its derivatives with respect to both boxes; `score` is IoU minus the penalty, without the rounding of 1 - loss.
template <class V>
struct BoxSlopes {
  V value, score;
  Box<V> first, second;
};

// a / b, and 0 where b is 0
template <class V>
FL_HD V quotient(V a, V b) {
  const auto nothing = equal(b, V(0));
  return select(nothing, V(0), a / select(nothing, V(1), b));
}

// The part of the derivative of max(a, b) that is a's: at a tie half, as in torch.
template <class V>
FL_HD V share(V a, V b) {
  return select(less(b, a), V(1), select(equal(a, b), V(0.5), V(0)));
}

// Two intervals on one axis.
template <class V>
struct Axis {
  V first, second;  // lengths
  V common, hull;   // of the intersection, negative where there is none, and of the smallest interval around both
  V offset;         // of the centres
  V more_first, more_second;  // first - common and second - common, which would cancel
  V low, high;      // the first interval's share in the derivative of the intersection's ends

  FL_HD Axis(V a1, V a2, V b1, V b2) {
    const V inner1 = larger(a1, b1), inner2 = smaller(a2, b2);
    first = a2 - a1;
    second = b2 - b1;
    common = inner2 - inner1;
    hull = larger(a2, b2) - smaller(a1, b1);
    offset = V(0.5) * ((a1 - b1) + (a2 - b2));
    more_first = (inner1 - a1) + (a2 - inner2);
    more_second = (inner1 - b1) + (b2 - inner2);
    low = share(a1, b1);
    high = share(b2, a2);
  }
};

template <class V>
struct Overlap {
  Axis<V> x, y;
  V inter, sum;       // areas: of the intersection, and of both boxes without it
  V whole;            // the union's area plus eps
  V iou, complement;  // IoU and 1 - IoU

  FL_HD Overlap(const Box<V>& a, const Box<V>& b, V eps) : x(a.x1, a.x2, b.x1, b.x2), y(a.y1, a.y2, b.y1, b.y2) {
    inter = select(less(V(0), x.common), select(less(V(0), y.common), x.common * y.common, V(0)), V(0));
    sum = x.first * y.first + x.second * y.second - inter;
    whole = sum + eps;
    iou = quotient(inter, whole);
    const V apart = x.first * y.more_first + x.more_first * y.common + (x.second * y.more_second + x.more_second * y.common);
    complement = select(less(V(0.5), iou), quotient(apart + eps, whole), V(1) - iou);
  }
};

// Derivatives of a penalty with respect to what an Axis measures.
template <class V>
struct AxisSlopes {
  V first, second, hull, offset;
};

// inter, area: with respect to the intersection's area and to the area of either box, beside what x and y tell.
template <class V>
struct Penalty {
  V value, inter, area;
  AxisSlopes<V> x, y;
};

struct BoxIou {
  template <class V>
  FL_HD static Penalty<V> eval(const Overlap<V>&, V, V) {
    const V none(0);
    return {none, none, none, {none, none, none, none}, {none, none, none, none}};
  }
};

// Rezatofighi et al. 2019: the part of the enclosing box that is outside of the union.
struct GeneralizedBoxIou {
  template <class V>
  FL_HD static Penalty<V> eval(const Overlap<V>& o, V eps_area, V) {
    const V none(0), hull = o.x.hull * o.y.hull, around = hull + eps_area;
    const V value = quotient(hull - o.sum, around), unit = quotient(V(1), around);
    const V slope = (V(1) - value) * unit;
    return {value, unit, none - unit, {none, none, slope * o.y.hull, none}, {none, none, slope * o.x.hull, none}};
  }
};

// Zheng et al. 2020, equation 7: the squared distance of the centres over the squared diagonal of the enclosing box.
struct DistanceBoxIou {
  template <class V>
  FL_HD static Penalty<V> eval(const Overlap<V>& o, V, V eps) {
    const V none(0), square = o.x.hull * o.x.hull + o.y.hull * o.y.hull + eps;
    const V value = quotient(o.x.offset * o.x.offset + o.y.offset * o.y.offset, square), unit = quotient(V(2), square);
    return {value, none, none,
            {none, none, none - unit * value * o.x.hull, unit * o.x.offset},
            {none, none, none - unit * value * o.y.hull, unit * o.y.offset}};
  }
};

// atan(width / height) of a box and its derivatives; all 0 for a box without size.
template <class V>
struct Aspect {
  V angle, by_width, by_height;

  FL_HD Aspect(V width, V height) {
    const V size = larger(abs(width), abs(height));
    const auto nothing = equal(size, V(0));
    const V scale = select(nothing, V(1), size), flip = select(less(height, V(0)), V(-1), V(1));
    const V w = flip * width / scale, h = select(nothing, V(1), flip * height / scale);  // one of them is 1 or -1
    const auto tall = less(abs(w), h);
    const V part = atan(select(tall, w, h)), right(1.5707963267948966);
    angle = select(tall, part, select(less(w, V(0)), part - right, right - part));
    const V unit = flip / (scale * (w * w + h * h));
    by_width = select(nothing, V(0), h * unit);
    by_height = select(nothing, V(0), V(0) - w * unit);
  }
};

// Zheng et al. 2020, equations 8 to 12: also alpha v, v = (4 / pi^2) (difference of the aspect angles)^2, alpha without derivative.
struct CompleteBoxIou {
  template <class V>
  FL_HD static Penalty<V> eval(const Overlap<V>& o, V eps_area, V eps) {
    Penalty<V> penalty = DistanceBoxIou::eval(o, eps_area, eps);
    const Aspect<V> a(o.x.first, o.y.first), b(o.x.second, o.y.second);
    const V turn = a.angle - b.angle, v = V(0.4052847345693511) * turn * turn;
    const V alpha = quotient(v, o.complement + v + eps), slope = V(0.8105694691387022) * alpha * turn;
    penalty.value = penalty.value + alpha * v;
    penalty.x.first = slope * a.by_width;
    penalty.y.first = slope * a.by_height;
    penalty.x.second = V(0) - slope * b.by_width;
    penalty.y.second = V(0) - slope * b.by_height;
    return penalty;
  }
};

// The derivatives of a loss with respect to the ends of the two intervals.
template <class V>
FL_HD void chain(const Axis<V>& axis, V common, const AxisSlopes<V>& slopes, V& a1, V& a2, V& b1, V& b2) {
  const V by_offset = V(0.5) * slopes.offset, one(1);
  a1 = by_offset - slopes.first - (common * axis.low + slopes.hull * (one - axis.low));
  a2 = by_offset + slopes.first + (common * axis.high + slopes.hull * (one - axis.high));
  b1 = V(0) - by_offset - slopes.second - (common * (one - axis.low) + slopes.hull * axis.low);
  b2 = slopes.second - by_offset + (common * (one - axis.high) + slopes.hull * axis.high);
}

// p: what is added to areas before they divide, and what is added to the other denominators.
template <class F, class V, class P>
FL_HD BoxSlopes<V> box_slopes(const Box<V>& a, const Box<V>& b, const P* p) {
  const Overlap<V> o(a, b, V(p[0]));
  Penalty<V> penalty = F::eval(o, V(p[0]), V(p[1]));
  const V unit = quotient(V(1), o.whole);
  const V area = penalty.area + o.iou * unit;
  const V inter = select(less(V(0), o.inter), penalty.inter - (V(1) + o.iou) * unit, V(0));
  penalty.x.first = penalty.x.first + area * o.y.first;
  penalty.y.first = penalty.y.first + area * o.x.first;
  penalty.x.second = penalty.x.second + area * o.y.second;
  penalty.y.second = penalty.y.second + area * o.x.second;
  BoxSlopes<V> slopes{o.complement + penalty.value, o.iou - penalty.value, {}, {}};
  chain(o.x, inter * o.y.common, penalty.x, slopes.first.x1, slopes.first.x2, slopes.second.x1, slopes.second.x2);
  chain(o.y, inter * o.x.common, penalty.y, slopes.first.y1, slopes.first.y2, slopes.second.y1, slopes.second.y2);
  return slopes;
}

#define FASTLOSS_BOX(X) \
  X(box_iou, BoxIou) \
  X(generalized_box_iou, GeneralizedBoxIou) \
  X(distance_box_iou, DistanceBoxIou) \
  X(complete_box_iou, CompleteBoxIou)

// Boxes in memory, in elements; row_stride 0: one box for all rows.
struct Boxes {
  const void* data;
  int64_t row_stride, coordinate_stride;
};

// One loss a row. `acc` is double for double boxes, else float. Gradients are contiguous, of the boxes' type.
struct BoxCall {
  int64_t rows;
  Boxes first, second;
  double params[kMaxParams];
  int reduction;

  void* loss;              // forward: acc, one a row for Reduction::kNone, else one
  const void* grad_loss;   // backward: acc
  int64_t grad_stride;     // of grad_loss: 0 where one number is for all rows
  void* grad_first;        // null where not wanted
  void* grad_second;
};

// The scores of every box of the first set (rows) with every box of the second (columns).
struct BoxPairs {
  int64_t rows, columns;
  Boxes first, second;

  void* score;             // forward: acc (rows, columns), contiguous
  const void* grad_score;  // backward: acc (rows, columns), contiguous
  void* grad_first;        // null where not wanted
  void* grad_second;
};

struct BoxPairsCall : BoxPairs {
  double params[kMaxParams];
};

}  // namespace fastloss
