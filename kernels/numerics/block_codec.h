#pragma once
// One element and one scale of the block formats: codes to numbers and numbers to codes. Host and device.

#include <cstdint>

#include "kernels/numerics/bf16.h"

namespace osprey {

/// What a block's elements are. Integers stand for k * 2^(2 - bits): int8 is k / 64, int4 is k / 4, and the
/// most negative code is never written (symmetric clipping).
enum class Element : uint8_t { e2m1, e2m3, e3m2, e4m3, e5m2, int4, int8 };

/// What a scale is stored as: a power of two, a small float, or fp32.
enum class ScaleType : uint8_t { e8m0, e4m3, f32 };

/// How the scale of a block follows from it; t is the exponent of the element's largest value, a the largest
/// |x|.
enum class ScaleRule : uint8_t {
  floor,  // 2^(floor(log2 a) - t): OCP MX v1.0; values above the largest element are clipped
  even,   // as floor, with a first rounded to the element's mantissa; default
  ceil,   // never clips, wastes up to one octave
  rceil,  // smallest power of two that does not clip: NVIDIA
  mse,    // QuEST: 0.48707976 of the block's standard deviation (Gaussian-optimal for e2m1), exponent rounded
  four_over_six,  // e4m3 scales only: the better of the largest element at 6 and at 4, by squared error
};

OSPREY_HD constexpr int element_bits(Element e) {
  switch (e) {
    case Element::e2m1:
    case Element::int4:
      return 4;
    case Element::e2m3:
    case Element::e3m2:
      return 6;
    default:
      return 8;
  }
}

}  // namespace osprey
