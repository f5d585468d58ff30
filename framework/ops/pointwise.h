#pragma once
#include <span>

#include "framework/tape/tape.h"
#include "kernels/numerics/activation.h"

namespace osprey {

/// a + b, a residual connection: backward passes its gradient to both without a copy.
/// Shapes: equal.
Var add(Tape& t, Var a, Var b);

/// x + bias for every row. Shapes: x (N, C), bias (C) -> (N, C).
Var add_bias(Tape& t, Var x, Var bias);

/// x + the biases side by side, for every row: what linear() of several weights may want.
/// In place: x's producer must not need its output for backward (linear does not), and the returned Var has
/// the same memory. Shapes: x (N, sum of C_i), biases (C_i) -> (N, sum of C_i). At most 4 biases.
Var add_biases(Tape& t, Var x, std::span<Parameter* const> biases);

/// x in another dtype, for evaluation; records nothing.
Tensor cast(Tape& t, Var x, DType dtype);

/// silu(gate) * up. Shapes: gate_up (..., 2F) = [gate | up] -> (..., F).
Var swiglu(Tape& t, Var gate_up);

/// activation(x). Shapes: x (N, F) -> (N, F).
Var activate(Tape& t, Var x, Activation activation);

/// Rows of `weight`. Shapes: tokens (N) i32, weight (V, C) -> (N, C).
Var embedding(Tape& t, const Tensor& tokens, Var weight);

}  // namespace osprey
