#include "kernels/sum_of_squares.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void sum_of_squares(const Queue& queue, const SumOfSquares& args) {
  for (const Tensor& x : args.xs)
    require(x.dtype == DType::f32 && x.contiguous() && x.device == queue.device, "sum_of_squares",
            "xs must be contiguous f32 on the queue's device, got {}", x);
  require(args.sum.numel() == 1 && args.sum.dtype == DType::f64, "sum_of_squares",
          "sum must be f64 (1), got {}", args.sum);
  dispatch(queue, args, cpu::sum_of_squares, cuda::sum_of_squares);
}

}  // namespace osprey::kernels
