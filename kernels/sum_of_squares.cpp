#include "kernels/sum_of_squares.h"

namespace osprey::kernels {

void sum_of_squares(const Queue& queue, const SumOfSquares& args) {
  require(args.x.dtype == DType::f32 && args.x.contiguous(), "sum_of_squares",
          "x must be contiguous f32, got {}", args.x);
  require(args.sum != nullptr, "sum_of_squares", "sum must point to a double");
  switch (queue.device.kind) {
    case DeviceKind::cpu:
      return cpu::sum_of_squares(queue, args);
    case DeviceKind::cuda:
      return cuda::sum_of_squares(queue, args);
    case DeviceKind::meta:
      return;
  }
}

}  // namespace osprey::kernels
