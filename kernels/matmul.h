#pragma once
// Dense matrix product of any two views. Linear layers have their own door, kernels/linear.h.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

enum class Op : uint8_t { none, transpose };

struct Matmul {
  Tensor c;
  Tensor a;
  Tensor b;
  Op op_a = Op::none;
  Op op_b = Op::none;
  float alpha = 1.0f;
  float beta = 0.0f;   // 0 overwrites: the addend is not read and may hold NaN
  Tensor addend = {};  // undefined: c itself
};

/// c = alpha op(a) op(b) + beta addend.
/// Shapes: op(a) (M, K), op(b) (K, N), c and addend (M, N); or all with one leading batch dimension.
/// Rows may be strided. Aliasing: c overlaps neither a nor b, nor an addend that is not c itself. Numerics: a
/// and b are both bf16 or both f32, c is either, the addend like c; sums are kept in fp32. Where
/// bf16_gemm_is_native() is false, bf16 inputs are widened and multiplied in fp32: same products, same
/// rounding of the result. The number of threads does not change the result. Errors: throws when shapes,
/// dtypes or devices do not fit.
void matmul(const Queue& queue, const Matmul& args);

/// The same by the device's own library (oneDNN on the CPU), even where ours is taken: the yardstick that
/// rates are given as a fraction of.
void library_matmul(const Queue& queue, const Matmul& args);

/// Does this CPU multiply bf16 itself (AVX512-BF16 or AMX)? Otherwise a bf16 recipe runs on fp32
/// products of bf16-rounded operands, and the caller says so once.
bool bf16_gemm_is_native();

}  // namespace osprey::kernels

namespace osprey::cpu {
void matmul(const Queue& queue, const kernels::Matmul& args);
void library_matmul(const Queue& queue, const kernels::Matmul& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void matmul(const Queue& queue, const kernels::Matmul& args);
void library_matmul(const Queue& queue, const kernels::Matmul& args);
}  // namespace osprey::cuda
