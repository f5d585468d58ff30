#pragma once
// Elements of kernels/gradient_scaling.h. Host and device.

#include <math.h>

#include "kernels/numerics/bf16.h"

namespace osprey {

/// |direction| / |projected| from sums of squares; 0 where there is no gradient.
OSPREY_HD double channel_factor(double direction_squares, double projected_squares) {
  return projected_squares > 0 ? sqrt(direction_squares / projected_squares) : 0;
}

/// What a matrix of this norm is multiplied by, so that it grows to at most `growth` times what it was; 1
/// where there is nothing before (0).
OSPREY_HD double growth_limit(double norm, double previous, double growth) {
  return previous > 0 && norm > growth * previous ? growth * previous / norm : 1;
}

}  // namespace osprey
