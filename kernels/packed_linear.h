#pragma once
// Linear layers whose weights alone are packed: what is multiplied are the numbers that they stand for.

#include <span>

#include "kernels/block_format.h"
#include "kernels/core/queue.h"

namespace osprey::kernels {

/// Elements of the scratch memory of packed_linear() for a product with so many rows of x; 0 where it needs
/// none.
int64_t packed_linear_scratch(const Queue& queue, int64_t rows, std::span<const Packed> weights);

/// y = x dequantize(W)^T, the weights stacked along their rows.
/// Shapes: y (M, sum N_i) f32 or bf16, x (M, K) bf16 or f32, weights[i] (N_i, K) of one format, scratch of
/// x's dtype, packed_linear_scratch() elements, or undefined where that is 0. Numerics: weights as
/// dequantize() rounds them to x's dtype; sums in fp32, one rounding at the end. CPUs with AVX512-BF16 do not
/// round mxfp4 that meets few rows of bf16, and take denormal bf16 numbers there for zero. The number of
/// threads does not change the result; how many rows x has does: up to packed_linear_few_rows rows on a CPU
/// read codes as they are stored, one row of weights after the other or, in bf16 on CPUs with AMX, 32 by 16
/// tiles. Others, and all on GPUs, multiply a panel of weights after the other, dequantized into `scratch`.
/// Errors: throws when shapes, dtypes or formats do not fit.
struct PackedLinear {
  Tensor y;
  Tensor x;
  std::span<const Packed> weights;
  Tensor scratch = {};
};
void packed_linear(const Queue& queue, const PackedLinear& args);

/// With how many rows of x CPUs read codes as they are stored.
inline constexpr int64_t packed_linear_few_rows = 16;

}  // namespace osprey::kernels

namespace osprey::cpu {
/// At most packed_linear_few_rows rows.
void packed_linear(const Queue& queue, const kernels::PackedLinear& args);
}  // namespace osprey::cpu
