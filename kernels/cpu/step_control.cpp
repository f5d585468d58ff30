#include "kernels/step_control.h"

#include "kernels/numerics/clip.h"

namespace osprey::cpu {

using namespace kernels;

void decide_step(const Queue&, const DecideStep& args) {
  double* control = args.control.as<double>();
  const StepDecision decision = decide_from_sums(control[step_loss], control[step_sum_of_squares],
                                                 args.max_grad_norm.value_or(no_limit));
  control[step_grad_scale] = decision.grad_scale;
  control[step_apply] = decision.apply;
}

}  // namespace osprey::cpu
