#include "kernels/step_control.h"

#include <cmath>

#include "kernels/numerics/clip.h"

namespace osprey::cpu {

using namespace kernels;

void decide_step(const Queue&, const DecideStep& args) {
  double* control = args.control.as<double>();
  const double norm = std::sqrt(control[step_sum_of_squares]);
  const bool finite = is_finite(control[step_loss]) && is_finite(control[step_sum_of_squares]);
  control[step_apply] = finite ? 1 : 0;
  control[step_grad_scale] = finite && args.max_grad_norm ? clip_scale(norm, *args.max_grad_norm) : 1;
}

}  // namespace osprey::cpu
