#pragma once
// Angles of rotary positions. Host and device.

#include <cmath>

#include "kernels/numerics/bf16.h"

namespace osprey {

struct Turn {
  float cosine, sine;
};

/// How the angles of a model are stretched so that it reads longer texts than it was first trained on.
struct RopeScaling {
  enum class Kind : uint8_t { none, linear, llama3, yarn };
  Kind kind = Kind::none;
  double factor = 1;          // how many times longer
  double original_len = 0;    // llama3, yarn: tokens of the first training
  double slow = 1, fast = 4;  // llama3: low and high frequency factor; yarn: beta_slow and beta_fast
  double magnitude = 1;       // of cosines and sines (yarn's attention factor)
  bool operator==(const RopeScaling&) const = default;
};

/// 0 where yarn leaves pair i as it is, 1 where it divides its frequency by the factor, and between.
OSPREY_HD double yarn_ramp(const RopeScaling& s, double theta, int i, int half) {
  const double dim = 2.0 * half, two_pi = 6.283185307179586;
  const double fast = std::floor(dim * std::log(s.original_len / (s.fast * two_pi)) / (2 * std::log(theta)));
  const double slow = std::ceil(dim * std::log(s.original_len / (s.slow * two_pi)) / (2 * std::log(theta)));
  const double low = fast > 0 ? fast : 0, limit = slow < dim - 1 ? slow : dim - 1;
  const double high = limit == low ? limit + 0.001 : limit;
  const double ramp = (i - low) / (high - low);
  return ramp < 0 ? 0 : (ramp > 1 ? 1 : ramp);
}

/// What the frequency of pair i is multiplied by.
/// Reference: linear: Chen et al. 2306.15595; llama3: Llama 3.1 as in transformers' modeling_rope_utils.py;
/// yarn: Peng et al. 2309.00071.
OSPREY_HD double rope_stretch(const RopeScaling& s, double theta, int i, int half) {
  if (s.kind == RopeScaling::Kind::none) return 1;
  const double divided = 1 / s.factor;
  if (s.kind == RopeScaling::Kind::linear) return divided;
  if (s.kind == RopeScaling::Kind::yarn) {
    const double ramp = yarn_ramp(s, theta, i, half);
    return divided * ramp + (1 - ramp);
  }
  // How often the pair turns within the original length decides.
  const double turns = s.original_len * std::pow(theta, -static_cast<double>(i) / half) * 0.15915494309189535;
  if (turns > s.fast) return 1;
  if (turns < s.slow) return divided;
  const double smooth = (turns - s.slow) / (s.fast - s.slow);
  return (1 - smooth) * divided + smooth;
}

/// What pair i of D / 2 = half turns by from one position to the next, in full turns: theta^(-i / half) / 2
/// pi, stretched.
OSPREY_HD double turns_per_position(double theta, int i, int half, const RopeScaling& scaling = {}) {
  return std::pow(theta, -static_cast<double>(i) / static_cast<double>(half)) * 0.15915494309189535 *
         rope_stretch(scaling, theta, i, half);
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
