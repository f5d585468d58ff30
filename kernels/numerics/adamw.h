#pragma once
// One element of AdamW. Host and device.

#include <math.h>

#include "kernels/numerics/bf16.h"

namespace osprey {

/// The constants of one step, rounded once from double.
struct AdamWFactors {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float root_scale;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float step_size;  // learning_rate / (1 - beta1^t)
  float decay;      // learning_rate * weight_decay
};

/// Beside which root of the second moment eps stands: torch.optim.AdamW adds it to the one that is corrected
/// for its bias, AdamW of transformers to the one that is not.
enum class EpsPlace : int64_t { corrected_root, plain_root };

/// What they are formed from; the learning rate is the one after the schedule.
struct AdamWConstants {
  double learning_rate, beta1, beta2, eps, weight_decay;
  EpsPlace eps_place = EpsPlace::corrected_root;
};

/// x^n for n >= 0, by products alone: the same bits on every device.
OSPREY_HD double power(double x, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= x;
    x *= x;
  }
  return result;
}

/// The factors of 0-based step `step`.
OSPREY_HD AdamWFactors adamw_factors(const AdamWConstants& c, int64_t step, double grad_scale) {
  const double root_scale = 1 / sqrt(1 - power(c.beta2, step + 1));
  return {static_cast<float>(grad_scale),
          static_cast<float>(1 - c.beta1),
          static_cast<float>(c.beta2),
          static_cast<float>(1 - c.beta2),
          static_cast<float>(root_scale),
          static_cast<float>(c.eps_place == EpsPlace::plain_root ? c.eps * root_scale : c.eps),
          static_cast<float>(c.learning_rate / (1 - power(c.beta1, step + 1))),
          static_cast<float>(c.learning_rate * c.weight_decay)};
}

/// One step of one element.
OSPREY_HD void adamw_element(float& master, float& m, float& v, float grad, const AdamWFactors& f) {
  const float g = grad * f.grad_scale;
  const float first = m + f.one_minus_beta1 * (g - m);
  const float second = f.beta2 * v + f.one_minus_beta2 * (g * g);
  const float denominator = sqrtf(second) * f.root_scale + f.eps;
  m = first;
  v = second;
  // The decay is part of the difference: 1 - decay would lose most of a small decay's digits.
  master = master - (f.decay * master + f.step_size * (first / denominator));
}

}  // namespace osprey
