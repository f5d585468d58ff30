#pragma once
// Low-rank adapters beside the weights of linear layers.

#include <span>

#include "framework/tape/tape.h"

namespace osprey {

/// y += scale (x a^T) b^T. Reference: LoRA, Hu et al. 2106.09685, sec. 4.1.
/// With a magnitude, the rows of W + scale b a get the lengths of W's own rows plus `magnitude`: y is
/// multiplied by (|W|_row + magnitude) / |W + scale b a|_row, whose divisor is a constant in backward.
/// Reference: DoRA, Liu et al. 2402.09353, eq. 5 and sec. 4.3, whose m is |W|_row + magnitude: what is held
/// begins at 0, which bf16 rounds to nothing else.
struct LowRankAdapter {
  Parameter* a = nullptr;  // (rank, in)
  Parameter* b = nullptr;  // (out, rank)
  float scale = 1;
  Parameter* magnitude = nullptr;  // (out); null: lengths are what they come to
};

/// Adds the adapters of `weights`, whose outputs lie side by side in y, to y in place; y where there are
/// none. Shapes: x (N, in), y (N, sum of out). Numerics: scale (x a^T) is rounded to y's type, and so is the
/// sum; lengths are formed in fp32, anew in each forward pass, from the weight as it is or is held packed.
Var add_adapters(Tape& t, Var y, Var x, std::span<Parameter* const> weights);

}  // namespace osprey
