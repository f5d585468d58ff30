#pragma once
// The part of a gradient norm that touches every element.

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// *sum += the sum of squares of x, on the host.
/// Shapes: x is f32 and contiguous, of any shape.
/// Async: the sum is complete on return. On meta nothing is added.
/// Numerics: squares and sums in double over chunks fixed by the element count: independent of threads.
/// Squares of finite floats cannot overflow a double, so the sum is finite if and only if every element is.
struct SumOfSquares {
  Tensor x;
  double* sum = nullptr;
};
void sum_of_squares(const Queue& queue, const SumOfSquares& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args);
}
namespace osprey::cuda {
void sum_of_squares(const Queue& queue, const kernels::SumOfSquares& args);
}
