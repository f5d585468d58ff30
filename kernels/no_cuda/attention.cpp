#include "kernels/attention.h"

namespace osprey::cuda {

static void refuse() { fail("attention", "this osprey was built without CUDA"); }

void attention_forward(const Queue&, const kernels::AttentionForward&) { refuse(); }
void attention_backward(const Queue&, const kernels::AttentionBackward&) { refuse(); }
void attention_decode(const Queue&, const kernels::AttentionDecode&) { refuse(); }

}  // namespace osprey::cuda
