#pragma once
// Single elements of Muon's momentum, direction and update. Host and device.

#include <math.h>

#include "kernels/numerics/bf16.h"

namespace osprey {

/// The direction is u = of_grad * grad + of_momentum * momentum.
struct MuonDirectionFactors {
  float of_grad, of_momentum;
};

/// u from a momentum that has been updated; what it is multiplied by stands in the factors.
OSPREY_HD MuonDirectionFactors muon_direction_factors(int64_t nesterov, double beta, double grad_scale,
                                                      double scale) {
  if (!nesterov) return {0.0f, static_cast<float>(scale)};
  return {static_cast<float>(scale * grad_scale), static_cast<float>(scale * beta)};
}

/// What u is multiplied by to have a norm of 1 / safety; 0 where there is no direction.
OSPREY_HD double muon_direction_scale(double sum_of_squares, double safety) {
  const double norm = safety * sqrt(sum_of_squares);
  return norm < 1e-30 ? 0 : 1 / norm;
}

OSPREY_HD float muon_momentum_element(float momentum, float grad, float beta, float grad_scale) {
  return beta * momentum + grad_scale * grad;
}

OSPREY_HD float muon_direction_element(float momentum, float grad, MuonDirectionFactors f) {
  return f.of_grad * grad + f.of_momentum * momentum;
}

/// As in adamw_element, the decay is part of the difference.
OSPREY_HD float muon_update_element(float master, float x, float step_size, float decay) {
  return master - (decay * master + step_size * x);
}

}  // namespace osprey
