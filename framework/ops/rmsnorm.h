#pragma once
#include "framework/tape/tape.h"

namespace osprey {

/// RMSNorm; with a weight of shape (1), SSNorm.
/// Shapes: x (..., C), weight (C) or (1) -> like x.
Var rmsnorm(Tape& t, Var x, Var weight, float eps);

/// LayerNorm. Shapes: x (..., C), weight (C), bias (C) -> like x.
Var layernorm(Tape& t, Var x, Var weight, Var bias, float eps);

}  // namespace osprey
