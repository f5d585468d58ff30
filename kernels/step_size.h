#pragma once
// Step sizes that are learnt (LSQ): the gradient of what quantize() did by rule lsq, by its step.

#include "kernels/block_format.h"
#include "kernels/core/queue.h"

namespace osprey::kernels {

/// dstep (+)= factor * the sum of dy * d(y) / d(step) over the elements that share a step: those of a row, or
/// all; see numerics/step_size.h.
/// Shapes: dy, x (N, K) f32 or bf16: the gradient of the quantized numbers, and what they were before; step
/// (1) or (N) f32 or bf16, as quantize() had it; dstep as step, f32. Numerics: fp32 per element, sums in f64
/// over fixed chunks in fixed order, so the number of threads changes no bit; clipped elements count with all
/// of dy, whatever a mask would take from it. Reference: LSQ (Esser et al., arXiv 1902.08153).
struct StepGradient {
  Accum dstep;
  Tensor dy, x, step;
  Element element = Element::int4;  // int4 or int8
  double factor = 1;
};
void step_gradient(const Queue& queue, const StepGradient& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void step_gradient(const Queue& queue, const kernels::StepGradient& args);
}
namespace osprey::cuda {
void step_gradient(const Queue& queue, const kernels::StepGradient& args);
}
