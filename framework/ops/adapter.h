#pragma once
// Low-rank adapters beside the weights of linear layers.

#include <span>

#include "framework/tape/tape.h"

namespace osprey {

/// y += scale (x a^T) b^T. Reference: LoRA, Hu et al. 2106.09685, sec. 4.1.
struct LowRankAdapter {
  Parameter* a = nullptr;  // (rank, in)
  Parameter* b = nullptr;  // (out, rank)
  float scale = 1;
};

/// Adds the adapters of `weights`, whose outputs lie side by side in y, to y in place; y where there are
/// none. Shapes: x (N, in), y (N, sum of out). Numerics: scale (x a^T) is rounded to y's type, and so is the
/// sum.
Var add_adapters(Tape& t, Var y, Var x, std::span<Parameter* const> weights);

}  // namespace osprey
