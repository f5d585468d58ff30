#pragma once
#include "framework/tape/tape.h"

namespace osprey {

/// RMSNorm; with a weight of shape (1), SSNorm.
/// Shapes: x (..., C), weight (C) or (1) -> like x.
Var rmsnorm(Tape& t, Var x, Var weight, float eps);

/// LayerNorm. Shapes: x (..., C), weight (C), bias (C) -> like x.
Var layernorm(Tape& t, Var x, Var weight, Var bias, float eps);

struct NormedSum {
  Var sum, normed;
};
/// a + b and rmsnorm(a + b) in one pass, and one more for both gradients.
/// Shapes: a, b (N, C), weight (C) or (1) -> (N, C) both. The norm must have a reader that reaches the loss:
/// the gradient of the sum is passed on with the norm's.
NormedSum add_rmsnorm(Tape& t, Var a, Var b, Var weight, float eps);

}  // namespace osprey
