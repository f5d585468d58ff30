#include "kernels/linear.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {

int64_t linear_pack_bytes(kernels::Weights, kernels::PackFor) { return 0; }
void linear_pack(const Queue&, const kernels::LinearPack&) { absent("linear_pack"); }
void linear_forward(const Queue&, const kernels::LinearForward&) { absent("linear_forward"); }
void linear_dgrad(const Queue&, const kernels::LinearDgrad&) { absent("linear_dgrad"); }
void linear_wgrad(const Queue&, const kernels::LinearWgrad&) { absent("linear_wgrad"); }

}  // namespace osprey::cuda
