#pragma once
// What a product of packed matrices is, for all devices.
//
// Elements of e2m1, int4 and int8 are integers times 1/2, 1/4 and 1/64, their unit. A sum of products of
// integers in a block, S, is exact in int32 as in fp32. Where a row has one scale, 512 elements are a block.
//
// For the blocks in turn, sum = fma(S, (scale of a * both units) * scale of b, sum), all in fp32; then
// y = sum * f, or fma(sum, f, y), with f = (factor * tensor scale of a) * tensor scale of b, rounded once.
// Elements that are floats are multiplied as fp32, and S is their fp32 sum in turn: their products are exact.

#include "kernels/numerics/block_codec.h"

namespace osprey {

inline constexpr int64_t whole_row_block = 512;

OSPREY_HD constexpr bool is_integer(Element e) {
  return e == Element::e2m1 || e == Element::int4 || e == Element::int8;
}

OSPREY_HD constexpr float unit_of(Element e) {
  return e == Element::e2m1 ? 0.5f : e == Element::int4 ? 0.25f : e == Element::int8 ? 1.0f / 64 : 1.0f;
}

/// The factor of S.
OSPREY_HD float scaled_units(float scale, Element a, Element b) { return scale * (unit_of(a) * unit_of(b)); }

}  // namespace osprey
