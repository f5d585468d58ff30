#pragma once
// The part of a gradient norm that touches every element.

#include <span>

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// sum += the sum of squares of all elements of all tensors.
/// Shapes: each of xs f32 and contiguous, of any shape; sum (1) f64.
/// Numerics: squares and sums in double over chunks fixed by the element counts: independent of threads.
/// Squares of finite floats cannot overflow a double, so the sum is finite if and only if every element is.
struct SumOfSquares {
  std::span<const Tensor> xs;
  Tensor sum;
};
void sum_of_squares(const Queue& queue, const SumOfSquares& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args);
}
namespace osprey::cuda {
void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args);
}
