#pragma once
// Learnt step sizes: the scale that a step means, and how a rounded number moves with its step. Host and
// device.
// Reference: LSQ (Esser et al., arXiv 1902.08153); the least step is that of OFQ (Liu et al., 2302.02210).

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// Codes of integers count steps from -most_steps to most_steps: clipping is symmetric, where the paper has
/// one more step below zero.
OSPREY_HD constexpr int most_steps(Element e) { return static_cast<int>(element_layout(e).largest_code); }

/// A step below this counts as this much. Its gradient is passed on, so that it can come back.
inline constexpr float least_step = 1e-5f;
OSPREY_HD float used_step(float step) { return step < least_step ? least_step : step; }  // NaN stays NaN

/// Elements are multiples of 2^(2 - bits), see Element.
OSPREY_HD float steps_per_unit(Element e) { return power_of_two(element_layout(e).bits - 2); }

/// `largest` are the magnitude bits of the largest of the numbers that share the scale: NaN and Inf among
/// them, or as a step, make the scale NaN.
OSPREY_HD BlockScale block_scale_lsq(Element e, uint32_t largest, float step) {
  const float scale = used_step(step) * steps_per_unit(e);
  if (largest >= float_infinity || magnitude_bits(scale) >= float_infinity)
    return {float_nan, bits_float(float_nan)};
  return {float_bits(scale), inverse_f32(scale)};
}

/// d(what x becomes) / d(step), with v = x times the inverse of the scale: round(v) - v in steps, and beyond
/// the largest element the steps to it. With round(v) held and v passed through, as in the paper.
OSPREY_HD float slope_by_step(Element e, float v) {
  const float up = steps_per_unit(e), q = decode_element(e, encode_nearest(e, v)) * up;
  return bits_float(magnitude_bits(v)) > element_layout(e).largest ? q : q - v * up;
}

/// Where a step starts, from the mean of |x| over what shares it.
inline double initial_step(Element e, double mean_magnitude) {
  return 2 * mean_magnitude / __builtin_sqrt(static_cast<double>(most_steps(e)));
}

/// What the gradient of a step is multiplied by, for it to move as fast in proportion as weights do: `shared`
/// numbers have it; of activations, those of one token.
inline double step_gradient_scale(Element e, int64_t shared) {
  return 1 / __builtin_sqrt(static_cast<double>(shared) * most_steps(e));
}

}  // namespace osprey
