#pragma once
// Normal draws. Host and device.

#include <math.h>

#include "kernels/numerics/random.h"

namespace osprey {

/// Standard normal of 64 random bits, by Box and Muller in double.
OSPREY_HD float normal_of(const Philox& bits) {
  const double u = (bits.v[0] + 0.5) / 4294967296.0, w = (bits.v[1] + 0.5) / 4294967296.0;
  return static_cast<float>(sqrt(-2.0 * log(u)) * cos(2.0 * 3.141592653589793 * w));
}

}  // namespace osprey
