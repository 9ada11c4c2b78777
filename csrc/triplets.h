// Sums over all triplets of an anchor, a row of its label and a row of another label, and the description of one call.
#pragma once

#include "math.h"

namespace fastloss {

// A triplet's value is max(0, near_p + margin - near_n). fastloss/triplets.py states the mathematics.
struct TripletsCall {
  const void* near;  // acc, (rows, columns), contiguous
  int64_t rows, columns;
  const void *row_label, *column_label;  // acc
  bool skips;
  int64_t skip;  // leave out positives with column - row == skip
  double margin;

  double* totals;   // a row
  int64_t* counts;  // a row: triplets above 0
  void* grad;       // acc, (rows, columns)
};

}  // namespace fastloss
