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
/// d (m, n). a and b are both bf16, both f32, or both E4M3 (input u8); c and d share a dtype: bf16 or f32 of
/// bf16 and of E4M3, f32 of f32. (kernels/cuda/product.h also rounds products of f32 to bf16.) Strides are in
/// elements: from row to row, and from one matrix of a batch to the next. E4M3: d[i][j] = alpha a_scales[i]
/// b_scales[j] (a b^T)[i][j] + beta c[i][j]; transpose_a false, transpose_b true, no batch; k and n multiples
/// of 16, rows of all matrices at multiples of 16 bytes. Sums: see Blas::gemm().
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
  // Of E4M3: (m) and (n) f32 on the device, both or neither; and whether sums stay in the tensor cores' own
  // accumulators.
  const float* a_scales = nullptr;
  const float* b_scales = nullptr;
  bool fast_sums = false;
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
  /// and so may ranks. E4M3: products are exact, but Hopper's FP8 tensor cores add them up with some 14 bits
  /// (DeepSeek-V3, arXiv 2412.19437, section 3.3.2); without fast_sums the library moves sums to fp32
  /// registers every so many k (CUBLASLT_MATMUL_DESC_FAST_ACCUM is 0), with it only at the end. Errors:
  /// throws what the library reports, naming the shape.
  void gemm(const Gemm& gemm);
  /// Whether the library has an algorithm for such a product on this GPU; asks it, and runs nothing.
  bool has(const Gemm& gemm);
  /// Which library this is, with its version.
  std::string label() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace osprey::cuda
