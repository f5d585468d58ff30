#pragma once
// The grids of round-to-nearest. Host and device.

#include <cmath>

#include "kernels/numerics/bf16.h"

namespace osprey {

struct RoundingGrid {
  float scale = 0, zero = 0, low = 0, high = 0;
};

OSPREY_HD float round_to_grid(const RoundingGrid& g, float x) {
  if (g.scale == 0) return 0;
  const float q = std::rint(x / g.scale) + g.zero;
  return (std::fmin(std::fmax(q, g.low), g.high) - g.zero) * g.scale;
}

OSPREY_HD RoundingGrid symmetric_grid(float largest, int bits) {
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  return {largest / top, 0, -top - 1, top};
}

OSPREY_HD RoundingGrid asymmetric_grid(float smallest, float largest, int bits) {
  const float top = static_cast<float>((1 << bits) - 1), scale = (largest - smallest) / top;
  return {scale, scale == 0 ? 0 : std::rint(-smallest / scale), 0, top};
}

inline constexpr int clip_candidates = 80;

/// Candidate i of the clip search clips the largest value to this.
OSPREY_HD float clip_candidate(float largest, int i) {
  return largest * (1.0f - static_cast<float>(i) / 100.0f);
}

/// What the clip search sums up for an element.
OSPREY_HD double clip_error(const RoundingGrid& g, float x) {
  return std::pow(static_cast<double>(std::fabs(round_to_grid(g, x) - x)), 2.4);
}

}  // namespace osprey
