#pragma once
// One look at the code of a four-bit weight: did it jump back? Host and device.

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// How much a look counts in the running mean of oscillations, and from where on a weight is said to
/// oscillate. Reference: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training"
/// (arXiv 2203.11086).
inline constexpr float oscillation_momentum = 0.01f, oscillation_threshold = 0.005f;

/// What is remembered of a code in one byte: bits 0-3 the code, bits 4-5 the direction of its last move (1
/// up, 2 down, 0 none yet), bit 6 that there was a look.
inline constexpr uint32_t oscillation_up = 1, oscillation_down = 2, oscillation_seen = 64;

/// Where a code stands among the numbers of its element: codes compare as their numbers do.
OSPREY_HD int code_order(Element e, uint32_t code) {
  const int low = static_cast<int>(code & 7u);
  if (e == Element::int4) return code & 8u ? low - 8 : low;
  return code & 8u ? -low : low;  // both zeros are one
}

struct OscillationLook {
  uint32_t last;  // to remember
  float rate;
  bool oscillated;
};
/// `last` and `rate` of the look before. A code whose scale has become another has not moved.
OSPREY_HD OscillationLook look_at_code(Element e, uint32_t code, bool same_scale, uint32_t last, float rate) {
  if (!(last & oscillation_seen)) return {code | oscillation_seen, 0.0f, false};
  const uint32_t before = last >> 4 & 3u;
  const int moved = code_order(e, code) - code_order(e, last & 15u);
  const uint32_t now = !same_scale || moved == 0 ? 0u : moved > 0 ? oscillation_up : oscillation_down;
  const bool back = now != 0 && before != 0 && now != before;
  const float mean = rate + oscillation_momentum * ((back ? 1.0f : 0.0f) - rate);
  return {code | (now ? now : before) << 4 | oscillation_seen, mean, back};
}

}  // namespace osprey
