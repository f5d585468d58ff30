#include "kernels/step_size.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void step_gradient(const Queue&, const kernels::StepGradient&) { absent("step_gradient"); }
}  // namespace osprey::cuda
