#include "kernels/pointwise.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void copy(const Queue&, const kernels::Copy&) { absent("copy"); }
void fill(const Queue&, const kernels::Fill&) { absent("fill"); }
void add(const Queue&, const kernels::Add&) { absent("add"); }
void add_bias(const Queue&, const kernels::AddBias&) { absent("add_bias"); }
void bias_backward(const Queue&, const kernels::BiasBackward&) { absent("bias_backward"); }
void swiglu_forward(const Queue&, const kernels::SwigluForward&) { absent("swiglu_forward"); }
void swiglu_backward(const Queue&, const kernels::SwigluBackward&) { absent("swiglu_backward"); }
void activation_forward(const Queue&, const kernels::ActivationForward&) { absent("activation_forward"); }
void activation_backward(const Queue&, const kernels::ActivationBackward&) { absent("activation_backward"); }
void embedding_forward(const Queue&, const kernels::EmbeddingForward&) { absent("embedding_forward"); }
void embedding_backward(const Queue&, const kernels::EmbeddingBackward&) { absent("embedding_backward"); }
}  // namespace osprey::cuda
