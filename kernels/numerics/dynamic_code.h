#pragma once
// Eight-bit codes of numbers in [-1, 1] whose spacing shrinks with the number: seven decades, finer ones the
// larger they are. Host and device.
// Reference: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2110.02861), sec. 2.2, dynamic
// quantization with tables as in torchao: decade i of 0..6 holds 2^i numbers (unsigned: 2^(i+1)), the middles
// of equal parts of [0.1, 1], times 10^(i - 6); then 0 and 1.

#include <math.h>

#include "kernels/numerics/bf16.h"

namespace osprey {

enum class DynamicCode : uint8_t { with_sign, without_sign };

inline constexpr int64_t dynamic_block = 256;  // elements that share a scale: the largest of their magnitudes

/// 10^(decade - 6).
OSPREY_HD float dynamic_decade(int decade) {
  const float of[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  return of[decade];
}

/// The magnitude of rank r >= 0 among those a code has: 0, then ascending; the last one is 1.
template <DynamicCode kind>
OSPREY_HD float dynamic_magnitude(int rank) {
  constexpr int first = kind == DynamicCode::with_sign ? 1 : 2;  // numbers in the lowest decade
  constexpr int last = first * 127 + 1;
  if (rank == 0) return 0;
  if (rank == last) return 1;
  const int at = rank - 1 + first;  // decade i begins at first * 2^i
  int decade = 0;
  while ((first << (decade + 1)) <= at) ++decade;
  const int count = first << decade;
  const float part = (static_cast<float>(at - count) + 0.5f) / static_cast<float>(count);
  return dynamic_decade(decade) * (0.1f + 0.9f * part);
}

/// The rank whose magnitude is nearest to y in [0, 1]; of two equally near ones the greater.
template <DynamicCode kind>
OSPREY_HD int dynamic_rank(float y) {
  constexpr int first = kind == DynamicCode::with_sign ? 1 : 2;
  constexpr int last = first * 127 + 1;
  int decade = 0;
  while (decade < 6 && y >= dynamic_decade(decade)) ++decade;  // decade i ends at 10^(i - 6)
  const int count = first << decade;
  const float part = (y / dynamic_decade(decade) - 0.1f) / 0.9f * static_cast<float>(count);
  int rank = part <= 0 ? 0 : static_cast<int>(part);
  rank = (rank < count ? rank : count - 1) + count - first + 1;
  // Where decades meet, and beside 0 and 1, a neighbour may be nearer.
  while (rank < last && dynamic_magnitude<kind>(rank + 1) - y <= y - dynamic_magnitude<kind>(rank)) ++rank;
  while (rank > 0 && y - dynamic_magnitude<kind>(rank - 1) < dynamic_magnitude<kind>(rank) - y) --rank;
  return rank;
}

/// Codes with a sign: 0 is zero, 1..128 are the positive ranks, 129..255 the negative ones 1..127.
template <DynamicCode kind>
OSPREY_HD float dynamic_decode(uint8_t code) {
  if (kind == DynamicCode::without_sign) return dynamic_magnitude<kind>(code);
  return code <= 128 ? dynamic_magnitude<kind>(code) : -dynamic_magnitude<kind>(code - 128);
}

/// x in [-1, 1], or in [0, 1] without a sign. -1 becomes the nearest there is, which is a little more.
template <DynamicCode kind>
OSPREY_HD uint8_t dynamic_encode(float x) {
  if (kind == DynamicCode::without_sign) return static_cast<uint8_t>(dynamic_rank<kind>(x));
  const int rank = dynamic_rank<kind>(fabsf(x));
  if (x >= 0 || rank == 0) return static_cast<uint8_t>(rank);
  return static_cast<uint8_t>(128 + (rank < 127 ? rank : 127));
}

}  // namespace osprey
