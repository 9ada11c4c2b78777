// What the engines' ops share, and the table of the instruction set in use.

#include "ops.h"

#include <sys/mman.h>

namespace fastloss {

const Kernels* kernels = nullptr;

constexpr size_t kHugePage = size_t{1} << 21;  // bytes

// Up to 32 MB the C library gives used memory out again, which costs neither faults nor zeroing.
void advise_huge_pages(const Tensor& t) {
  const size_t bytes = t.nbytes();
  if (bytes < 16 * kHugePage) return;
  const auto start = reinterpret_cast<uintptr_t>(t.data_ptr());
  const auto first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const auto last = (start + bytes) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: failure costs only time
}

}  // namespace fastloss

extern "C" __attribute__((visibility("default"))) void fastloss_use(const fastloss::Kernels* chosen) { fastloss::kernels = chosen; }
