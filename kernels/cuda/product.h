#pragma once
// Products of tensors, for the ops that are made of them.

#include "kernels/core/queue.h"
#include "kernels/matmul.h"

namespace osprey::cuda {

/// d = alpha op(a) op(b) + beta c.
/// Shapes: op(a) (M, K), op(b) (K, N), d and c (M, N); or all with one leading batch dimension. Rows may be
/// strided. Aliasing: c undefined means d itself. Numerics: a and b both bf16 or both f32, c and d of one
/// dtype; fp32 sums, one rounding. bf16 of f32 operands takes the stream's scratch.
struct Product {
  Tensor d, a, b, c;
  kernels::Op op_a = kernels::Op::none, op_b = kernels::Op::none;
  float alpha = 1, beta = 0;
};
void product(const Queue& queue, const Product& args);

/// d = sum + beta c, rounded once. Shapes: matrices of equal shape, sum f32, c and d bf16; rows may be
/// strided.
struct AddRounded {
  Tensor d, sum, c;
  float beta = 0;
};
void add_rounded(const Queue& queue, const AddRounded& args);

/// How many rows of `cols` floats fit the scratch memory of a stream. Errors: throws when not even one does.
int64_t scratch_rows(int64_t cols);

/// The (rows, cols) matrix that a tensor of any rank is.
inline Tensor matrix(const Tensor& t) { return t.row_range(0, t.rows()); }

}  // namespace osprey::cuda
