#pragma once
#include <span>

#include "framework/quant/scheme.h"
#include "framework/tape/tape.h"

namespace osprey {

/// The scheme of weights that share an input, or null. Errors: they belong to different groups.
const QuantScheme* scheme_of(std::span<Parameter* const> weights);

/// One vote each on where x, the stacked weights and dy have their outliers, into scheme.votes.
/// Shapes: x (N, in), weights (out_i, in), dy (N, sum of out_i). In a backward.
void count_patterns(Tape& t, const QuantScheme& scheme, const Tensor& x, std::span<const Tensor> weights,
                    const Tensor& dy);

}  // namespace osprey
