#include "kernels/linear.h"

namespace osprey::cuda {

[[noreturn]] static void none() { fail("linear", "this osprey was built without CUDA"); }

int64_t linear_pack_bytes(kernels::Weights, kernels::PackFor) { none(); }
void linear_pack(const Queue&, const kernels::LinearPack&) { none(); }
void linear_forward(const Queue&, const kernels::LinearForward&) { none(); }
void linear_dgrad(const Queue&, const kernels::LinearDgrad&) { none(); }
void linear_wgrad(const Queue&, const kernels::LinearWgrad&) { none(); }

}  // namespace osprey::cuda
