#include "kernels/step_control.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"
#include "kernels/numerics/clip.h"

namespace osprey::cuda {

static __global__ void decide(double* control, double limit) {
  const StepDecision decision =
      decide_from_sums(control[kernels::step_loss], control[kernels::step_sum_of_squares], limit);
  control[kernels::step_grad_scale] = decision.grad_scale;
  control[kernels::step_apply] = decision.apply;
}

void decide_step(const Queue& queue, const kernels::DecideStep& args) {
  launch("decide_step", queue, {dim3(1), dim3(1)}, decide, args.control.as<double>(),
         args.max_grad_norm.value_or(no_limit));
}

}  // namespace osprey::cuda
