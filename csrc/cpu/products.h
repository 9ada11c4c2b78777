// Products of small matrices that keep to one thread: torch's own kernels for them where it has any, else its library.
#pragma once

#include "ops.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <exception>

namespace fastloss {

constexpr int64_t kProductColumns = 256;  // of one product: more would not stay in cache

#ifdef CPUBLAS_BRGEMM_F32F32F32
// Whether torch's small product of T gives what it should; of `pairs`, with the second operand by pairs of rows.
template <class T>
bool multiplies(bool pairs) {
  const T a[4] = {1, 2, 3, 4}, b[4] = {1, 0, 0, 1};
  float c[4] = {};
  try {
    at::native::cpublas::brgemm(2, 2, 2, 2, 2, 2, false, a, b, c, pairs);
    at::native::cpublas::brgemm_release(pairs);
  } catch (const std::exception&) {
    return false;
  }
  return std::equal(a, a + 4, c);
}
#endif

// Whether torch has small products that keep to one thread, which are twice as fast as the library's on some processors.
inline bool has_small_products() {
#ifdef CPUBLAS_BRGEMM_F32F32F32
  static const bool works = multiplies<float>(false);
  return works;
#else
  return false;
#endif
}

// Whether torch multiplies pairs of bfloat16 numbers on this processor's own instructions for it, and adds them up in float32.
inline bool has_bfloat16_products() {
#if defined(CPUBLAS_BRGEMM_F32F32F32) && defined(CPUBLAS_BRGEMM_BF16BF16F32) && defined(__x86_64__) && defined(__GNUC__)
  if (!at::globalContext().userEnabledMkldnn()) return false;  // now, but perhaps not later
  static const bool works = __builtin_cpu_supports("avx512bf16") && multiplies<at::BFloat16>(true);
  return works;
#else
  return false;
#endif
}

// Whether gradients of scores of bfloat16 rows may be rounded to bfloat16: unless torch.backends.mkldnn.matmul.fp32_precision is "ieee".
inline bool may_round() {
  return at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL) != at::Float32Precision::IEEE;
}

// A contiguous copy in a dtype.
inline Tensor copied(const Tensor& from, at::ScalarType type) {
  const Tensor made = at::empty(from.sizes(), from.options().dtype(type));
  advise_huge_pages(made);
  return made.copy_(from);
}

// Rows of 16-bit numbers by pairs: (rows / 2, features, 2), with a row of 0 behind an odd last one.
inline Tensor by_pairs(const Tensor& rows) {
  const Tensor even = rows.size(0) % 2 ? at::constant_pad_nd(rows, {0, 0, 0, 1}) : rows;
  return copied(even.view({even.size(0) / 2, 2, even.size(1)}).transpose(1, 2), rows.scalar_type());
}

// c (m, n) = a (m, k) times b (k, n), all of them rows of the given lengths; or c += that.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c, int64_t c_stride,
              bool adds = false) {
  if (k == 0) {  // which small products do not take
    for (int64_t i = 0; i < m && !adds; ++i) std::fill_n(c + i * c_stride, n, T(0));
    return;
  }
#ifdef CPUBLAS_BRGEMM_F32F32F32
  if constexpr (std::is_same_v<T, float>) {
    if (has_small_products()) {
      for (int64_t i = 0; i < n; i += kProductColumns) {
        at::native::cpublas::brgemm(m, std::min(kProductColumns, n - i), k, a_stride, b_stride, c_stride, adds, a, b + i, c + i, false);
      }
      return;
    }
  }
#endif
  const auto view = [](const T* data, int64_t rows, int64_t columns, int64_t stride) {
    return at::from_blob(const_cast<T*>(data), {rows, columns}, {stride, 1}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  };
  Tensor out = view(c, m, n, c_stride);
  if (adds) at::cpu::addmm_out(out, out, view(a, m, k, a_stride), view(b, k, n, b_stride));
  else at::cpu::mm_out(out, view(a, m, k, a_stride), view(b, k, n, b_stride));
}

// The same of bfloat16 numbers with sums in float32, where has_bfloat16_products(); b is by pairs of rows, and an odd last column of a has
// zeros behind it.
inline void multiply_pairs(int64_t m, int64_t n, int64_t k, const at::BFloat16* a, int64_t a_stride, const at::BFloat16* b,
                           int64_t b_stride, float* c, int64_t c_stride, bool adds = false) {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  for (int64_t i = 0; i < n; i += kProductColumns) {
    at::native::cpublas::brgemm(m, std::min(kProductColumns, n - i), k + k % 2, a_stride, b_stride, c_stride, adds, a, b + 2 * i, c + i,
                                true);
  }
#endif
}

// Small products keep what they set up for a thread until told.
struct Products {
  ~Products() {
#ifdef CPUBLAS_BRGEMM_F32F32F32
    if (has_small_products()) at::native::cpublas::brgemm_release(has_bfloat16_products());
#endif
  }
};

}  // namespace fastloss
