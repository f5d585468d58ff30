#include "kernels/sum_of_squares.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void sum_of_squares(const Queue& queue, const SumOfSquares& args) {
  require(args.x.dtype == DType::f32 && args.x.contiguous(), "sum_of_squares",
          "x must be contiguous f32, got {}", args.x);
  require(args.sum != nullptr, "sum_of_squares", "sum must point to a double");
  dispatch(queue, args, cpu::sum_of_squares, cuda::sum_of_squares);
}

}  // namespace osprey::kernels
