#pragma once
// Angles of rotary positions. Host and device.

#include <cmath>

#include "kernels/numerics/bf16.h"

namespace osprey {

struct Turn {
  float cosine, sine;
};

/// What pair i of D / 2 = half turns by from one position to the next, in full turns: theta^(-i / half) / 2
/// pi.
OSPREY_HD double turns_per_position(double theta, int i, int half) {
  return std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)) * 0.15915494309189535;
}

/// Cosine and sine of so many full turns.
/// Numerics: fp64 down to an eighth of a turn, which keeps positions of millions exact, then fp32; errors
/// below 1.2e-7.
OSPREY_HD Turn turn_by(double turns) {
  const double quarters = 4.0 * turns, nearest = std::rint(quarters);
  const float x = static_cast<float>((quarters - nearest) * 1.5707963267948966);  // within pi / 4
  const float z = x * x;
  const float sine = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const float cosine =
      1.0f - 0.5f * z +
      z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  switch (static_cast<int64_t>(nearest) & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace osprey
