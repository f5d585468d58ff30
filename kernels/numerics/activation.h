#pragma once
// Activations of one number and their slopes. Host and device.

#include "kernels/numerics/exp.h"

namespace osprey {

enum class Activation : uint8_t {
  gelu,  // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), "gelu_new" in transformers
  relu,
};

/// tanh(u) = 2 sigmoid(2 u) - 1. Beyond 10 nothing changes any more, and cubes do not overflow.
OSPREY_HD float gelu_gate(float x) {
  const float c = x > 10.0f ? 10.0f : (x < -10.0f ? -10.0f : x);
  return sigmoid(1.5957691216f * (c + 0.044715f * c * c * c));
}
OSPREY_HD float gelu(float x) { return x * gelu_gate(x); }
OSPREY_HD float gelu_slope(float x) {
  const float c = x > 10.0f ? 10.0f : (x < -10.0f ? -10.0f : x), gate = gelu_gate(x);
  return gate + c * gate * (1.0f - gate) * 1.5957691216f * (1.0f + 0.134145f * c * c);
}

/// NaN stays NaN.
OSPREY_HD float relu(float x) { return x < 0.0f ? 0.0f : x; }
/// 0 at 0, as in PyTorch.
OSPREY_HD float relu_slope(float x) { return x > 0.0f ? 1.0f : 0.0f; }

}  // namespace osprey
