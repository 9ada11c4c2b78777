// What one instruction set's library offers to the ops: plain functions, so that torch's dispatcher headers are compiled once.
#pragma once

#include "../assign.h"
#include "../box.h"
#include "../divergence.h"
#include "../elementwise.h"
#include "../margin.h"
#include "../overlap.h"
#include "../pair.h"
#include "../row.h"
#include "../sort.h"
#include "../triplets.h"

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

constexpr int64_t kPairLanes = 64;  // own rows of a tile of scores

// A tile of the pair engine, of the accumulation type: a row for each of some rows of the other set, a lane for each of some own rows.
struct PairTile {
  void* scores;  // products, which become scores and, in the backward, their gradients
  int64_t stride;
  int64_t own_begin, own_count, other_begin, other_count;
  bool finished;  // scores, of which no products are left to be made scores
};

// What is kept of a term: of an own one by lane, of another one by row of the other set.
struct PairSums {
  void* top;      // the maximum, of the accumulation type
  double* sum;    // of values, or of exponentials below the maximum
  double* count;  // of pairs; of a maximum its place
};

// Sums of gradients by lane; null where not wanted.
struct PairGradients {
  double* own_bias;
  double* own_param[2 * kMaxPairTerms];
};

namespace kernel {

// The row engine's work is cut into items (a row, or a tile of neighbouring rows) that may run in any order on any thread.
int64_t row_items(const RowCall&);
void row_forward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);
void row_backward(const RowCall&, Scalar, int functor, bool soft, int64_t begin, int64_t end);

// The element-wise engine's is cut into ranges of elements. The forward gives the sums of losses and of weights of its range.
void elementwise_forward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end, double* sums);
void elementwise_backward(const ElementwiseCall&, Scalar, int functor, int64_t begin, int64_t end);

// The overlap engine's is cut into items of neighbouring pixels of one sample. The forward gives (classes, kStatistics) sums an item in
// `partials`; false for a label that no class has.
int64_t overlap_items(const OverlapCall&);
bool overlap_forward(const OverlapCall&, Scalar, int functor, int64_t begin, int64_t end, double* partials);
void overlap_backward(const OverlapCall&, Scalar, int functor, int64_t begin, int64_t end);
// The box engine's into ranges of rows; the forward gives the sum of the losses of its range.
void box_forward(const BoxCall&, Scalar, int functor, int64_t begin, int64_t end, double* sum);
void box_backward(const BoxCall&, Scalar, int functor, int64_t begin, int64_t end);
// Of a matrix of scores into ranges of rows, and for the gradient of the second set into ranges of columns.
void box_pairs_forward(const BoxPairsCall&, Scalar, int functor, int64_t begin, int64_t end);
void box_pairs_backward_first(const BoxPairsCall&, Scalar, int functor, int64_t begin, int64_t end);
void box_pairs_backward_second(const BoxPairsCall&, Scalar, int functor, int64_t begin, int64_t end);
// The sort engine's sweeps are cut into ranges of elements; keys are of elements [begin, end) of a row, those that matter to the front.
// `wide` entries have tags of 64 bits. The keys of double are 64 bits, else 32.
void sort_statistics(const SortCall&, Scalar, int errors, int64_t begin, int64_t end);
SortKeys sort_keys(const SortCall&, Scalar, int errors, int64_t group, int64_t row, int64_t begin, int64_t end, bool wide, void* entries);
void sort_backward(const SortCall&, Scalar, int errors, int64_t begin, int64_t end);

// The margin engine's is cut into ranges of rows.
void margin_forward(const MarginCall&, Scalar, int64_t begin, int64_t end);
void margin_backward(const MarginCall&, Scalar, int64_t begin, int64_t end);

// The pair engine's are tiles: the forward adds to what is kept of each term, the backward gives the gradient of the products in place
// of these, with `gradient` for (rows of the tile, kPairLanes) numbers of scratch.
void pair_forward(const PairCall&, Scalar, const PairTile&, const PairSums* sums);
void pair_backward(const PairCall&, Scalar, const PairTile&, void* gradient, const PairGradients&);
// Rows to columns, of numbers of the accumulation type.
void pair_turn(Scalar, const void* from, int64_t rows, int64_t columns, int64_t from_stride, void* to, int64_t to_stride);
// Rows of which `count` numbers are rounded to bfloat16 and 0 is behind them, of kPairLanes together or a multiple.
void pair_round(const float* from, int64_t rows, int64_t columns, int64_t count, void* to, int64_t to_stride);
// Of `count` rows: norms that are at least `least`, of rows made `unit`, less `centre` if there is one; `squares` of what they became.
void pair_prepare(Scalar, const void* rows, int64_t count, int64_t features, bool unit, const void* centre, double least, void* to,
                  void* squares);
// The gradient of rows, `by` them as prepared, of which `by_squares` has a gradient too where it is given.
void pair_prepare_backward(Scalar, const void* rows, const void* prepared, const void* by, const void* by_squares, int64_t count,
                           int64_t features, bool unit, double least, void* to);
// Dot products of listed rows, and to[listed rows] by weights: row r of `to` from entries order[begin[r]] to order[begin[r + 1]].
void pair_listed(Scalar, const void* a, const void* b, const int64_t* i, const int64_t* j, int64_t begin, int64_t end, int64_t features,
                 void* to);
void pair_listed_backward(Scalar, const void* other, const int64_t* j, const void* weight, const int64_t* order, const int64_t* from,
                          int64_t begin, int64_t end, int64_t features, void* to);

// The divergence engine's is cut into ranges of rows.
void divergence_forward(const DivergenceCall&, Scalar, int functor, int64_t begin, int64_t end);
void divergence_backward(const DivergenceCall&, Scalar, int functor, int64_t begin, int64_t end);

// Sums over triplets are cut into ranges of rows.
void triplets(const TripletsCall&, Scalar, int64_t begin, int64_t end);

// The assignment of anchors into ranges of images; the scores' type is given.
void assign(const AssignCall&, Scalar, int64_t begin, int64_t end);

}  // namespace kernel

struct Kernels {
  decltype(&kernel::row_items) row_items;
  decltype(&kernel::row_forward) row_forward;
  decltype(&kernel::row_backward) row_backward;
  decltype(&kernel::elementwise_forward) elementwise_forward;
  decltype(&kernel::elementwise_backward) elementwise_backward;
  decltype(&kernel::overlap_items) overlap_items;
  decltype(&kernel::overlap_forward) overlap_forward;
  decltype(&kernel::overlap_backward) overlap_backward;
  decltype(&kernel::box_forward) box_forward;
  decltype(&kernel::box_backward) box_backward;
  decltype(&kernel::box_pairs_forward) box_pairs_forward;
  decltype(&kernel::box_pairs_backward_first) box_pairs_backward_first;
  decltype(&kernel::box_pairs_backward_second) box_pairs_backward_second;
  decltype(&kernel::sort_statistics) sort_statistics;
  decltype(&kernel::sort_keys) sort_keys;
  decltype(&kernel::sort_backward) sort_backward;
  decltype(&kernel::margin_forward) margin_forward;
  decltype(&kernel::margin_backward) margin_backward;
  decltype(&kernel::pair_forward) pair_forward;
  decltype(&kernel::pair_backward) pair_backward;
  decltype(&kernel::pair_turn) pair_turn;
  decltype(&kernel::pair_round) pair_round;
  decltype(&kernel::pair_prepare) pair_prepare;
  decltype(&kernel::pair_prepare_backward) pair_prepare_backward;
  decltype(&kernel::pair_listed) pair_listed;
  decltype(&kernel::pair_listed_backward) pair_listed_backward;
  decltype(&kernel::triplets) triplets;
  decltype(&kernel::divergence_forward) divergence_forward;
  decltype(&kernel::divergence_backward) divergence_backward;
  decltype(&kernel::assign) assign;
};

}  // namespace fastloss
