#include "kernels/step_control.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void decide_step(const Queue&, const kernels::DecideStep&) { absent("decide_step"); }
}  // namespace osprey::cuda
