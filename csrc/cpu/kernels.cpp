// The table by which the ops find the kernels of one instruction set's library.
#include "kernels.h"

using namespace fastloss::kernel;

extern "C" __attribute__((visibility("default"))) const fastloss::Kernels fastloss_kernels = {
    row_items, row_forward, row_backward, elementwise_forward, elementwise_backward, overlap_items, overlap_forward, overlap_backward,
    box_forward, box_backward, box_pairs_forward, box_pairs_backward_first, box_pairs_backward_second,
    sort_statistics, sort_keys, sort_backward, margin_forward, margin_backward, pair_forward, pair_backward,
    pair_turn, pair_round, pair_prepare, pair_prepare_backward, pair_listed, pair_listed_backward, triplets, divergence_forward,
    divergence_backward, assign};
