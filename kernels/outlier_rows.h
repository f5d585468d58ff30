#pragma once
// Rows of a matrix that are larger than the others: which they are, and how they come back.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// The K rows of x with the largest sums of squares, in ascending order of rows. Of equal sums the lower row
/// is taken. A row that holds NaN counts as larger than one whose sum is Inf, and that as larger than others.
/// Shapes: x (N, C) bf16 or f32, rows may be strided; rows (K) i32, out, K <= N; squares (N) f32, out: the
/// sums. Numerics: squares and sums in double, in an order that C fixes, rounded once to f32: all devices
/// find the same rows. What overflows f32 is Inf.
struct LargestRows {
  Tensor rows;
  Tensor squares;
  Tensor x;
};
void largest_rows(const Queue& queue, const LargestRows& args);

/// y[rows[k]] = x[k]; the other rows of y stay as they are. embedding_forward() is the way back.
/// Shapes: y (N, C), x (K, C), both bf16 or both f32, rows may be strided; rows (K) i32, each at most once.
/// Errors: a row outside [0, N) throws on the CPU; a GPU stops with an error.
struct ScatterRows {
  Tensor y;
  Tensor x;
  Tensor rows;
};
void scatter_rows(const Queue& queue, const ScatterRows& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void largest_rows(const Queue& queue, const kernels::LargestRows& args);
void scatter_rows(const Queue& queue, const kernels::ScatterRows& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void largest_rows(const Queue& queue, const kernels::LargestRows& args);
void scatter_rows(const Queue& queue, const kernels::ScatterRows& args);
}  // namespace osprey::cuda
