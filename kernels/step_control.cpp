#include "kernels/step_control.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void require_control(const char* where, const Queue& queue, const Tensor& control) {
  if (control.shape == Shape{step_scalars} && control.dtype == DType::f64 && control.device == queue.device)
    return;
  fail(where, "control must be f64 ({}) on the queue's device, got {}", static_cast<int>(step_scalars),
       control.str());
}

void decide_step(const Queue& queue, const DecideStep& args) {
  require_control("decide_step", queue, args.control);
  dispatch(queue, args, cpu::decide_step, cuda::decide_step);
}

}  // namespace osprey::kernels
