// What the engines' sources offer to the Python bindings: plain functions, so that nvcc never sees pybind11.
#pragma once

#include "../box.h"
#include "../divergence.h"
#include "../elementwise.h"
#include "../overlap.h"
#include "../pair.h"
#include "../row.h"
#include "../sort.h"

namespace fastloss {

enum class Scalar : int { kFloat, kDouble, kBFloat16, kHalf };

struct RowLaunch {
  const char* functor;
  Scalar scalar;
  bool soft;         // targets are probabilities
  void* loss;        // Forward with a reduction: the scalar result, of type loss_scalar. Reduction::kNone writes call.row_loss.
  Scalar loss_scalar;
  void* partial;     // forward: acc, 2 * max_blocks() entries of scratch
  void* stream;
};

struct ElementwiseLaunch {
  const char* functor;
  Scalar scalar;
  void* loss;     // Forward with a reduction: the result, of the operands' type. Reduction::kNone writes call.loss.
  void* partial;  // Forward with a reduction: acc, 2 * max_blocks() entries of scratch.
  void* stream;
  int64_t count;  // Forward with a reduction: what a mean that is not weighted divides by.
};

struct OverlapLaunch {
  const char* functor;
  Scalar scalar;
  void* statistics;  // forward: acc (samples, classes, kStatistics)
  void* partial;     // forward: acc, overlap_scratch() entries; null where that is 0
  void* stream;
};

struct BoxLaunch {
  const char* functor;
  Scalar scalar;
  void* partial;  // forward with a reduction: acc, 2 * max_blocks() entries of scratch
  void* stream;
};

struct DivergenceLaunch {
  const char* functor;
  Scalar scalar;
  void* loss;  // forward with a reduction: the scalar result, of type loss_scalar; Reduction::kNone writes call.row_loss
  Scalar loss_scalar;
  void* partial;  // forward: acc, 2 * max_blocks() entries of scratch
  void* stream;
};

// Of a call's terms, those of the forward are statistics of the own rows.
struct PairLaunch {
  Scalar scalar;
  const void *own, *other;               // (own, features) and (other, features), contiguous
  void* count[2 * kMaxPairTerms];        // forward: acc, of each term; the statistic itself goes to PairTerm::value
  void* param_grad[2 * kMaxPairTerms];   // backward: acc, of the own parameter of each term; this and the next two null where not wanted
  void* grad;                            // backward: of the own set
  void* bias_grad;                       // backward: acc, of the own bias
  void* sums;                            // backward: acc (own, features), scratch; may be `grad` if that is acc
  void* stream;
};

struct SortLaunch {
  const char* errors;
  Scalar scalar;
  void* stream;
};

// Rows after the sort, the largest error first.
struct SortedRows {
  const void* keys;       // acc, (rows, size): errors
  const int64_t* order;   // (rows, size): where they came from
  const int64_t* before;  // (rows, tiles): foreground before each tile of sort_tile() ranks
  const int64_t* total;   // (rows,): foreground
};

int64_t max_blocks();
// How many numbers of scratch an overlap forward needs.
int64_t overlap_scratch(Scalar scalar, int64_t samples, int64_t classes, int64_t pixels);
int64_t sort_tile();

// All throw std::runtime_error with the driver's words when a launch fails.
void row_forward(const RowCall& call, const RowLaunch& launch);
void row_backward(const RowCall& call, const RowLaunch& launch);
void elementwise_forward(const ElementwiseCall& call, const ElementwiseLaunch& launch);
void elementwise_backward(const ElementwiseCall& call, const ElementwiseLaunch& launch);
// No size of these two is 0.
void overlap_forward(const OverlapCall& call, const OverlapLaunch& launch);
void overlap_backward(const OverlapCall& call, const OverlapLaunch& launch);
void box_forward(const BoxCall& call, const BoxLaunch& launch);
void box_backward(const BoxCall& call, const BoxLaunch& launch);
void box_pairs_forward(const BoxPairsCall& call, const BoxLaunch& launch);
void box_pairs_backward(const BoxPairsCall& call, const BoxLaunch& launch);
void divergence_forward(const DivergenceCall& call, const DivergenceLaunch& launch);
void divergence_backward(const DivergenceCall& call, const DivergenceLaunch& launch);
// pair_forward() may find no other rows, pair_backward() finds some.
void pair_forward(const PairCall& call, const PairLaunch& launch);
void pair_backward(const PairCall& call, const PairLaunch& launch);

// The steps of the sort engine, on `count` rows from row `first` of all groups on. What they write is laid out as in SortedRows.
void sort_statistics(const SortCall& call, const SortLaunch& launch);
void sort_keys(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, void* keys);
void sort_count(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, const int64_t* order, int64_t* counts);
void sort_weigh(const SortCall& call, const SortLaunch& launch, int64_t first, int64_t count, const SortedRows& sorted, void* partial,
                void* slopes);
void sort_backward(const SortCall& call, const SortLaunch& launch);

}  // namespace fastloss
