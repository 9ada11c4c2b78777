// What one instruction set's library offers to ops.cpp: plain functions, so that torch's dispatcher headers are compiled once.
#pragma once

#include "../elementwise.h"
#include "../row.h"
#include "../sort.h"

namespace fastloss {

enum class Scalar : int { kFloat, kDouble, kBFloat16, kHalf };

// What the sort engine sorts: the bits of an error, which order as the error does, and 2 * place in the row + (foreground).
template <class Key, class Tag>
struct SortEntry {
  Key key;
  Tag tag;
};

// Of the entries that were made: how many, and the bits that any key has.
struct SortKeys {
  int64_t count;
  uint64_t bits;
};

namespace kernel {

// The row engine's work is cut into items (a row, or a tile of neighbouring rows) that may run in any order on any thread.
int64_t row_items(const RowCall&);
void row_forward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);
void row_backward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);

// The element-wise engine's is cut into ranges of elements. The forward gives the sums of losses and of weights of its range.
void elementwise_forward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end, double* sums);
void elementwise_backward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end);

// The sort engine's sweeps are cut into ranges of elements; keys are of elements [begin, end) of a row, those that matter to the front.
// `wide` entries have tags of 64 bits. The keys of double are 64 bits, else 32.
void sort_statistics(const SortCall&, Scalar, int errors, int64_t begin, int64_t end);
SortKeys sort_keys(const SortCall&, Scalar, int errors, int64_t group, int64_t row, int64_t begin, int64_t end, bool wide, void* entries);
void sort_backward(const SortCall&, Scalar, int errors, int64_t begin, int64_t end);

}  // namespace kernel

struct Kernels {
  decltype(&kernel::row_items) row_items;
  decltype(&kernel::row_forward) row_forward;
  decltype(&kernel::row_backward) row_backward;
  decltype(&kernel::elementwise_forward) elementwise_forward;
  decltype(&kernel::elementwise_backward) elementwise_backward;
  decltype(&kernel::sort_statistics) sort_statistics;
  decltype(&kernel::sort_keys) sort_keys;
  decltype(&kernel::sort_backward) sort_backward;
};

}  // namespace fastloss
