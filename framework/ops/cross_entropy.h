#pragma once
#include "framework/model.h"
#include "framework/tape/tape.h"

namespace osprey {

/// The language-model head and its loss in chunks of rows: logits = x W^T never exist as a whole.
/// When training, gradients of x and W are formed in this call, times grad_scale, so that nothing is computed
/// twice; backward only passes them on: it must start from 1 at this op (Tape::backward).
/// Shapes: x (N, C), weight (V, C), targets (N) i32 with -1 ignored -> (1) f32, grad_scale * summed loss.
/// Errors: a target outside [-1, V): see kernels/classifier.h.
Var cross_entropy(Tape& t, Var x, Parameter& weight, const Tensor& targets, const LossArgs& args);

}  // namespace osprey
