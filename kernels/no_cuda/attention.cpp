#include "kernels/attention.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {

void attention_forward(const Queue&, const kernels::AttentionForward&) { absent("attention_forward"); }
void attention_backward(const Queue&, const kernels::AttentionBackward&) { absent("attention_backward"); }
void attention_decode(const Queue&, const kernels::AttentionDecode&) { absent("attention_decode"); }

}  // namespace osprey::cuda
