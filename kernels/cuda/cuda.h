#pragma once
// The CUDA twins of the front doors in kernels/*.h. Arguments have been checked.

#include "kernels/norm.h"
#include "kernels/pointwise.h"

namespace osprey::cuda {

void rmsnorm_forward(const Queue&, const kernels::RmsnormForward&);
void rmsnorm_backward(const Queue&, const kernels::RmsnormBackward&);
void layernorm_forward(const Queue&, const kernels::LayernormForward&);
void layernorm_backward(const Queue&, const kernels::LayernormBackward&);
void copy(const Queue&, const kernels::Copy&);
void add(const Queue&, const kernels::Add&);
void add_bias(const Queue&, const kernels::AddBias&);
void bias_backward(const Queue&, const kernels::BiasBackward&);
void swiglu_forward(const Queue&, const kernels::SwigluForward&);
void swiglu_backward(const Queue&, const kernels::SwigluBackward&);
void embedding_forward(const Queue&, const kernels::EmbeddingForward&);
void embedding_backward(const Queue&, const kernels::EmbeddingBackward&);

}  // namespace osprey::cuda
