#pragma once
// The order of rows by their sums of squares. Host and device.

#include <cstdint>

#include "kernels/numerics/block_codec.h"

namespace osprey {

/// A row's squares go to this many sums in turn; then the upper half of the sums is added to the lower, until
/// one is left.
inline constexpr int row_sums = 32;

/// Rows with greater keys come first. A sum of squares is not negative, so the bits of its fp32 value are in
/// its order; Inf is above all numbers, and NaN, whatever its bits, above Inf.
OSPREY_HD uint32_t row_key(float squares) {
  const uint32_t bits = magnitude_bits(squares);
  return bits > float_infinity ? float_nan : bits;
}

}  // namespace osprey
