#pragma once
// Global-norm clipping.

#include <cmath>
#include <optional>

namespace osprey {

struct GradientNorm {
  double norm = 0;     // before clipping
  double scale = 1;    // what gradients are multiplied by: afterwards their norm is min(norm, limit)
  bool finite = true;  // false: some gradient is not finite, and the update must be skipped
};

/// From the sum of squares of all gradients of all ranks. `limit` off: never scales.
inline GradientNorm clip(double sum_of_squares, std::optional<double> limit) {
  GradientNorm g;
  g.norm = std::sqrt(sum_of_squares);
  g.finite = std::isfinite(sum_of_squares);
  if (g.finite && limit && g.norm > *limit) g.scale = *limit / g.norm;
  return g;
}

}  // namespace osprey
