#pragma once
#include "framework/model.h"
#include "framework/tape/tape.h"

namespace osprey {

/// The language-model head and its loss in chunks of rows: logits = x W^T never exist as a whole.
/// Adds the summed loss (nats) and the counted targets to `sum`. When training, gradients of x and W are
/// formed in this call, times grad_scale, so that nothing is computed twice; backward only passes them on
/// (it must start from 1).
/// Shapes: x (N, C), weight (V, C), targets (N) i32 with -1 ignored, token_losses (N) f32 or undefined -> (1)
/// f32, grad_scale * summed loss. Errors: throws when a target is outside [-1, V).
Var cross_entropy(Tape& t, Var x, Parameter& weight, const Tensor& targets, float grad_scale, LossSum& sum,
                  const Tensor& token_losses);

}  // namespace osprey
