#pragma once
// One element of Adam whose moments and weight may be stored in less than fp32. Host and device.

#include "kernels/numerics/adamw.h"
#include "kernels/numerics/dynamic_code.h"
#include "kernels/numerics/random.h"

namespace osprey {

/// Rounds up or down with the chances that make the mean exact; `bits` are 16 random bits. Inf and NaN stay.
OSPREY_HD bf16 to_bf16_by_chance(float x, uint32_t bits) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) == 0x7f800000u) return to_bf16(x);
  const uint32_t up = u + (bits & 0xffffu);
  // A carry into the exponent of the largest numbers would make them infinite.
  return bf16{static_cast<uint16_t>(((up & 0x7f800000u) == 0x7f800000u ? u : up) >> 16)};
}

/// The draws of one element in one step: v[0] rounds the weight, v[1] the first moment, v[2] the second.
OSPREY_HD Philox update_draws(uint64_t seed, uint64_t stream, int64_t step, int64_t element) {
  return philox(seed + static_cast<uint64_t>(step) * 0x9E3779B97F4A7C15ull, stream,
                static_cast<uint64_t>(element));
}

/// The moments after a gradient; returns the direction, m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) +
/// eps). `first_scale` is 1 / (1 - beta1^t).
OSPREY_HD float adam_direction(float& m, float& v, float grad, const AdamWFactors& f, float first_scale) {
  const float g = grad * f.grad_scale;
  m = m + f.one_minus_beta1 * (g - m);
  v = f.beta2 * v + f.one_minus_beta2 * (g * g);
  return first_scale * (m / (sqrtf(v) * f.root_scale + f.eps));
}

/// How a tensor of moments is stored.
enum class Moment : uint8_t { f32, bf16, code };

}  // namespace osprey
