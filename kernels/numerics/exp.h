#pragma once
// exp(x) in fp32 without a call, so that loops over it vectorise. Host and device.

#include "kernels/numerics/bf16.h"

namespace osprey {

/// exp(x). Numerics: relative error below 2e-7 for x in [-87, 88]; 0 below, and saturates at exp(88)
/// above; exp(-inf) is 0 and NaN stays NaN.
/// exp(x) = 2^n * p(r), n = round(x / ln 2), |r| <= ln(2)/2, p a degree-6 Taylor polynomial.
OSPREY_HD float fast_exp(float x) {
  const float clamped = x < -87.3f ? -87.3f : (x > 88.0f ? 88.0f : x);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  const uint32_t scale_bits = static_cast<uint32_t>(bits + 127) << 23;  // the low bits of shifted hold n
  float scale;
  memcpy(&scale, &scale_bits, 4);
  const float e = p * scale;
  return x < -87.3f ? 0.0f : (x == x ? e : x);
}

OSPREY_HD float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace osprey
