#pragma once
// Is a weight so far from where it would round to another code that it may stand still? Host and device.
// Reference: confidence-guided annealing of OFQ (Liu et al., arXiv 2302.02210).

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// How far v, an element before it is rounded, is from the nearest place where its code changes, in units of
/// the distance of the two codes around it: 0 to 0.5. Beyond the largest element nothing changes: 1.
OSPREY_HD float rounding_margin(const ElementLayout& l, float v) {
  const float a = bits_float(magnitude_bits(v));
  if (!(a <= l.largest)) return 1;
  const uint32_t nearest = encode_nearest(l, a);
  const uint32_t low = a < decode_element(l, nearest) || nearest == l.largest_code ? nearest - 1 : nearest;
  const float below = decode_element(l, low), above = decode_element(l, low + 1);
  const float off = (a - below) / (above - below) - 0.5f;
  return off < 0 ? -off : off;
}

/// What may move in a step: elements with a margin of at most this. All of them before `begin`, then what is
/// clipped stands still first, and over `anneal` steps the boundary goes down in a line from 0.5 to `last`.
struct FreezeSchedule {
  double begin = 0, anneal = 0, last = 0.5;
};
OSPREY_HD float freeze_boundary(const FreezeSchedule& s, double step) {
  if (step < s.begin) return 1;
  const double done = step - s.begin < s.anneal ? (step - s.begin) / s.anneal : 1;
  return static_cast<float>(0.5 + (s.last - 0.5) * done);
}

}  // namespace osprey
