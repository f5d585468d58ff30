#pragma once
// Outputs of linear layers, scaled as if the rows of their weights had other lengths.

#include <span>

#include "framework/tape/tape.h"

namespace osprey {

/// Columns [begin, begin + C) of an output: the rows of the weight that gave them are `norm` long, and become
/// `base + change` long.
struct LengthChange {
  int64_t begin = 0;
  Tensor base, norm;  // (C) f32, constants: no gradient goes through them
  Var change;         // (C)
};

/// Scales these columns of y in place, and keeps a copy for the gradient of `change`, so that others may go
/// on in place; y where there are none. Shapes: y (N, cols). At most 4 changes. Numerics: the gradient of
/// `change` is formed from the scaled output: where base + change is 0, it is 0. Reference: DoRA, Liu et al.
/// 2402.09353, eq. 5 with m = base + change, and sec. 4.3.
Var change_lengths(Tape& t, Var y, std::span<const LengthChange> changes);

}  // namespace osprey
