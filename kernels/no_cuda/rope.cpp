#include "kernels/rope.h"

namespace osprey::cuda {

static void refuse() { fail("rope", "this osprey was built without CUDA"); }

void rope_forward(const Queue&, const kernels::RopeForward&) { refuse(); }
void rope_backward(const Queue&, const kernels::RopeBackward&) { refuse(); }

}  // namespace osprey::cuda
