#pragma once
// Rows of mxfp4 as rows of E4M3: each block's scale goes into its elements, and what all elements of a row
// have in common becomes one power of two, so that FP8 tensor cores can multiply whole rows. Host and device.
//
// A number of E2M1 is 1 or 1.5 times a power of two, and so it is after any scale of e8m0. E4M3 holds such a
// number exactly from its lowest bit, 2^-9, up to the binade of 2^8 (1.5 * 2^8 = 384 <= 448). So a row has an
// exact image if and only if its highest binade is at most 17 above its lowest set bit (and it lies within
// 2^-65 and 2^65). By scales alone: wherever they differ by no more than 2^14, for 6 has its binade at 2 and
// 0.5 and 1.5 have their lowest bit at -1. Zeros take up nothing. The rows that have none are called wide.

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// The exponents that numbers take up: the binade of the largest, and the lowest bit that is set in any.
struct Extent {
  int top, low;
};
inline constexpr Extent no_extent{-1024, 1024};
OSPREY_HD Extent joined(Extent a, Extent b) {
  return {a.top > b.top ? a.top : b.top, a.low < b.low ? a.low : b.low};
}

/// Bit m is set where a code of E2M1 with magnitude code m is among the eight in a word.
OSPREY_HD uint32_t e2m1_magnitudes(uint32_t word) {
  uint32_t seen = 0;
  for (int i = 0; i < 8; ++i) seen |= 1u << (word >> (4 * i) & 7u);
  return seen;
}

/// What a block takes up whose codes have the magnitudes `seen`, with the e8m0 scale `scale` (not NaN).
OSPREY_HD Extent e2m1_extent(uint32_t seen, uint32_t scale) {
  if ((seen & 0xfeu) == 0) return no_extent;
  int top = 2;
  if (seen < 1u << 6) top = 1;
  if (seen < 1u << 4) top = 0;
  if (seen < 1u << 2) top = -1;
  // Of the magnitude codes 1 and 3 (0.5, 1.5) the lowest bit is 2^-1, of 2 and 5 (1, 3) 2^0, of 4 and 7 (2,
  // 6) 2^1.
  const int low = seen & 0x0au ? -1 : seen & 0x24u ? 0 : seen & 0x90u ? 1 : 2;
  const int exponent = static_cast<int>(scale) - 127;
  return {top + exponent, low + exponent};
}

/// What becomes of a row: number = image * 2^exponent, or it is wide.
struct RowImage {
  int exponent;
  bool wide;
};
/// The largest |exponent| of an image: the product of any two numbers of two images, scales included, is a
/// normal float.
inline constexpr int most_image_exponent = 54;

/// Of a row that takes up `extent`. Where `nan` a scale is NaN; such a row is wide.
OSPREY_HD RowImage row_image(Extent extent, bool nan) {
  constexpr int highest = 8, lowest = -9;  // of E4M3
  if (nan) return {0, true};
  if (extent.top < extent.low) return {0, false};
  const int own = extent.top - highest, exponent = own < -most_image_exponent ? -most_image_exponent : own;
  const bool wide = extent.low - exponent < lowest || exponent > most_image_exponent;
  return {wide ? 0 : exponent, wide};
}

/// The code of E4M3 for magnitude code m of E2M1 times 2^shift, where E4M3 has that number; where it would
/// need lower bits, without them. It must not be too large: m = 0, or its binade plus shift is at most 8.
OSPREY_HD uint32_t e4m3_of_e2m1(uint32_t m, int shift) {
  if (m == 0) return 0;
  const int exponent = (m < 2 ? -1 : static_cast<int>(m >> 1) - 1) + shift;
  const uint32_t half = m < 2 ? 0u : m & 1u;  // is it 1.5 times a power of two?
  if (exponent >= -6) return static_cast<uint32_t>(exponent + 7) << 3 | half << 2;
  const uint32_t halves = 2u | half;  // times 2^(exponent - 1), in units of 2^-9
  return exponent >= -8 ? halves << (exponent + 8) : exponent == -9 ? halves >> 1 : 0u;
}

/// The codes of all eight magnitudes of a block with this scale, in a row with this image's exponent: byte m
/// is that of magnitude m. Where a block has no number of a magnitude that would not fit, its byte means
/// nothing.
struct E4m3Table {
  uint32_t low, high;
};
OSPREY_HD E4m3Table e4m3_table(uint32_t scale, int exponent) {
  const int shift = static_cast<int>(scale) - 127 - exponent;
  E4m3Table t{0, 0};
  for (uint32_t m = 0; m < 4; ++m) {
    t.low |= (e4m3_of_e2m1(m, shift) & 0xffu) << 8 * m;
    t.high |= (e4m3_of_e2m1(m + 4, shift) & 0xffu) << 8 * m;
  }
  return t;
}

/// Four codes of E2M1, the lowest 16 bits of `codes`, as four codes of E4M3.
OSPREY_HD uint32_t e4m3_four(E4m3Table table, uint32_t codes) {
  uint32_t four = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t m = codes >> (4 * i) & 7u;
    four |= ((m & 4u ? table.high : table.low) >> (8 * (m & 3u)) & 0xffu) << (8 * i);
  }
  return four | (codes & 0x8u) << 4 | (codes & 0x80u) << 8 | (codes & 0x800u) << 12 | (codes & 0x8000u) << 16;
}

}  // namespace osprey
