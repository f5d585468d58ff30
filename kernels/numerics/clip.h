#pragma once
// Global-norm clipping. Host and device.

#include "kernels/numerics/bf16.h"

namespace osprey {

/// Finite, without <cmath>: the exponent is not all ones.
OSPREY_HD bool is_finite(double v) {
  uint64_t u;
  memcpy(&u, &v, 8);
  return (u >> 52 & 0x7ff) != 0x7ff;
}

/// What gradients of this norm are multiplied by: afterwards their norm is min(norm, limit).
OSPREY_HD double clip_scale(double norm, double limit) { return norm > limit ? limit / norm : 1.0; }

}  // namespace osprey
