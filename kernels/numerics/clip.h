#pragma once
// Global-norm clipping. Host and device.

#include <math.h>

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

/// The limit that no norm exceeds.
constexpr double no_limit = __builtin_huge_val();

struct StepDecision {
  double grad_scale, apply;
};
/// Is the step taken, and with which scale? Nothing that is not finite may enter a parameter.
OSPREY_HD StepDecision decide_from_sums(double loss, double sum_of_squares, double limit) {
  if (!is_finite(loss) || !is_finite(sum_of_squares)) return {1.0, 0.0};
  return {clip_scale(sqrt(sum_of_squares), limit), 1.0};
}

}  // namespace osprey
