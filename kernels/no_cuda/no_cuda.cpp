// Linked when CUDA is absent: every CUDA twin throws. Absence of a backend is a file that is linked,
// not an #ifdef that is read.

#include "kernels/cuda/cuda.h"

namespace osprey::cuda {

[[noreturn]] static void absent() { fail("cuda", "this build has no CUDA; set run.device: cpu"); }

void rmsnorm_forward(const Queue&, const kernels::RmsnormForward&) { absent(); }
void rmsnorm_backward(const Queue&, const kernels::RmsnormBackward&) { absent(); }
void layernorm_forward(const Queue&, const kernels::LayernormForward&) { absent(); }
void layernorm_backward(const Queue&, const kernels::LayernormBackward&) { absent(); }
void copy(const Queue&, const kernels::Copy&) { absent(); }
void add(const Queue&, const kernels::Add&) { absent(); }
void add_bias(const Queue&, const kernels::AddBias&) { absent(); }
void bias_backward(const Queue&, const kernels::BiasBackward&) { absent(); }
void swiglu_forward(const Queue&, const kernels::SwigluForward&) { absent(); }
void swiglu_backward(const Queue&, const kernels::SwigluBackward&) { absent(); }
void embedding_forward(const Queue&, const kernels::EmbeddingForward&) { absent(); }
void embedding_backward(const Queue&, const kernels::EmbeddingBackward&) { absent(); }

}  // namespace osprey::cuda
