// Loops over memory for the CPU's engines: vectors with their tails, and the conversion of 16-bit types to float and back.
//
// Every loop is written once, for `acc` (double for double, else float), whatever the type in memory.
#pragma once

#include "../math.h"
#include "kernels.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <type_traits>

namespace fastloss {
namespace {

template <class T>
using acc_of = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();

constexpr int64_t kFewVectors = 16;  // terms added in a float before the result goes to a longer sum: rounding grows with their number

// visit(zero of the type in memory)
template <class Visit>
auto with_type(Scalar scalar, const Visit& visit) {
  switch (scalar) {
    case Scalar::kFloat: return visit(float{});
    case Scalar::kDouble: return visit(double{});
    case Scalar::kBFloat16: return visit(c10::BFloat16{});
    case Scalar::kHalf: return visit(c10::Half{});
  }
  __builtin_unreachable();
}

// f(i, vector loads of count lanes): the main loop and its tail in one place.
template <class A, class F>
inline void each_vector(int64_t n, F&& f) {
  constexpr int64_t width = Vectorized<A>::size();
  int64_t i = 0;
  for (; i + width <= n; i += width) f(i, width);
  if (i < n) f(i, n - i);
}

template <class A>
inline Vectorized<A> load(const A* p, int64_t count) {
  return count == Vectorized<A>::size() ? Vectorized<A>::loadu(p) : Vectorized<A>::loadu(p, count);
}

template <class A>
inline void store(A* p, Vectorized<A> v, int64_t count) {
  if (count == Vectorized<A>::size()) v.store(p);
  else v.store(p, count);
}

// The vectors of acc that one vector of T widens to: one for float and double, two for the 16-bit types.
template <class T>
constexpr int kParts = sizeof(acc_of<T>) / sizeof(T);

template <class T>
using Parted = std::array<Vectorized<acc_of<T>>, kParts<T>>;

template <class T>
inline Parted<T> load_parts(const T* p, int64_t count) {
  if constexpr (kParts<T> == 1) {
    return {load(p, count)};
  } else {
    const auto [low, high] = at::vec::convert_to_float<T>(load(p, count));
    return {low, high};
  }
}

template <class T>
inline void store_parts(T* p, const Parted<T>& v, int64_t count) {
  if constexpr (kParts<T> == 1) store(p, v[0], count);
  else store(p, at::vec::convert_from_float<T>(v[0], v[1]), count);
}

// n numbers of acc to memory as T; `from` is readable up to a whole vector of T.
template <class T>
inline void narrow(const acc_of<T>* from, T* to, int64_t n) {
  each_vector<T>(n, [&](int64_t i, int64_t count) {
    Parted<T> parts;
    for (int k = 0; k < kParts<T>; ++k) parts[k] = Vectorized<acc_of<T>>::loadu(from + i + k * Vectorized<acc_of<T>>::size());
    store_parts(to + i, parts, count);
  });
}

// f(vector, its first element, its number of elements) over n numbers as acc.
template <class T, class F>
inline void each_part(int64_t n, const T* from, F&& f) {
  constexpr int64_t width = Vectorized<acc_of<T>>::size();
  each_vector<T>(n, [&](int64_t i, int64_t count) {
    const auto parts = load_parts(from + i, count);
    for (int k = 0; k < kParts<T>; ++k) {
      const int64_t left = std::min(width, count - k * width);
      if (left > 0) f(parts[k], i + k * width, left);
    }
  });
}

template <class T>
inline void widen(const T* from, acc_of<T>* to, int64_t n) {
  each_part<T>(n, from, [&](Vectorized<acc_of<T>> v, int64_t i, int64_t count) { store(to + i, v, count); });
}

// The lanes of a vector combined by halves, which takes a quarter of the time of one after the other.
template <class A, class Combine>
inline A horizontal(Vectorized<A> v, const Combine& combine) {
  alignas(64) A lanes[Vectorized<A>::size()];
  v.store(lanes);
#pragma GCC unroll 8
  for (int half = Vectorized<A>::size() / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = combine(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

template <class A>
inline A horizontal_sum(Vectorized<A> v) {
  return horizontal(v, [](A a, A b) { return a + b; });
}

// Sums over the classes of many neighbouring rows at once, a row a lane: few terms at a time, and these compensated (Kahan 1965).
template <class A, int64_t kLanes>
struct LaneSums {
  using V = Vectorized<A>;
  alignas(64) A part[kLanes] = {}, total[kLanes] = {}, lost[kLanes] = {};
  static bool full(int64_t k) { return k % kFewVectors == kFewVectors - 1; }
  void add(int64_t j, V v, int64_t n) { store(part + j, load(part + j, n) + v, n); }
  void flush(int64_t lanes) {
    each_vector<A>(lanes, [&](int64_t j, int64_t n) {
      const V before = load(total + j, n), more = load(part + j, n) - load(lost + j, n), sum = before + more;
      const auto finite = less(larger(sum, V(0) - sum), V(kInf<A>));
      store(lost + j, select(finite, (sum - before) - more, V(0)), n);
      store(total + j, sum, n);
      store(part + j, V(0), n);
    });
  }
};

}  // namespace
}  // namespace fastloss
