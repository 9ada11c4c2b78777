// The table by which ops.cpp finds the kernels of one instruction set's library.
#include "kernels.h"

using namespace fastloss::kernel;

extern "C" __attribute__((visibility("default"))) const fastloss::Kernels fastloss_kernels = {
    row_items, row_forward, row_backward, elementwise_forward, elementwise_backward, sort_statistics, sort_keys, sort_backward};
