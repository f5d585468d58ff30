#pragma once
// Dense products on a GPU, as one function. The implementation is cuBLASLt (blas.cpp); tests that run kernels
// on the CPU link plain loops in its place (tests/support/executor/blas.cpp), so nothing else may name
// cuBLASLt.

#include <memory>
#include <string>

#include "kernels/core/tensor.h"
#include "kernels/cuda/stream.h"

namespace osprey::cuda {

/// d = alpha op(a) op(b) + beta c, `batch` times, all matrices row-major: op(a) (m, k), op(b) (k, n), c and
/// d (m, n). a and b are both bf16 or both f32; c and d share a dtype: bf16 or f32 of bf16, f32 of f32.
/// (kernels/cuda/product.h also rounds products of f32 to bf16.)
/// Strides are in elements: from row to row, and from one matrix of a batch to the next.
struct Gemm {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;  // null: d itself
  void* d = nullptr;
  DType input = DType::bf16, output = DType::bf16;
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0, d_stride = 0;
  int64_t batch = 1, a_batch_stride = 0, b_batch_stride = 0, c_batch_stride = 0, d_batch_stride = 0;
  float alpha = 1, beta = 0;
};

class Blas {
 public:
  explicit Blas(Stream& stream);
  ~Blas();
  /// d = op(a) op(b) as described. Nothing is allocated once a shape was seen.
  /// Aliasing: c is d with d's strides, or overlaps nothing that is written. Async: in stream order; may be
  /// captured. Numerics: sums in fp32, one rounding; f32 inputs are multiplied in fp32, not TF32. The
  /// algorithm is the library's first proposal, a function of shape, strides and alignment, so the same call
  /// gives the same bits in every run on one kind of GPU. With OSPREY_GEMM_AUTOTUNE=1 in the environment the
  /// first call of a shape times eight proposals and waits for them: then runs may differ in their last bits,
  /// and so may ranks. Errors: throws what the library reports, naming the shape.
  void gemm(const Gemm& gemm);
  /// Which library this is, with its version.
  std::string label() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace osprey::cuda
