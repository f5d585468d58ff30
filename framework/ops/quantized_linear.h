#pragma once
#include <span>

#include "framework/quant/scheme.h"
#include "framework/tape/tape.h"

namespace osprey {

/// linear() as the scheme of its first weight says (framework/quant/scheme.h), with the weights stacked along
/// their rows. Shapes: x (N, in), weights (out_i, in) -> (N, sum of out_i). Saves the quantized x where
/// activations have a format. With a format for gradients, N is a multiple of its block. Numerics: products
/// of packed operands as block_matmul() says; others as linear(), on dequantized values in the compute dtype.
/// Draws depend on the scheme's seed, the first weight's name and the tape's draw index.
Var quantized_linear(Tape& t, Var x, std::span<Parameter* const> weights, const QuantScheme& scheme);

}  // namespace osprey
