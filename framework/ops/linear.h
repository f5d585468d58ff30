#pragma once
#include <span>

#include "framework/tape/tape.h"

namespace osprey {

/// y = x W^T with the weights stacked along their rows: one GEMM for Q, K and V, one for gate and up.
/// Shapes: x (N, in), weights (out_i, in) -> (N, sum of out_i).
/// At most 4 weights. Each gets its own gradient; those not trainable get none. Weights that have a scheme
/// (Parameter::scheme) are quantized by it; weights with one input have one scheme.
Var linear(Tape& t, Var x, std::span<Parameter* const> weights);
inline Var linear(Tape& t, Var x, Parameter& weight) {
  Parameter* one[] = {&weight};
  return linear(t, x, one);
}

}  // namespace osprey
