#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

/// The step's constants, rounded once from double.
struct AdamWFactors {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float root_scale;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float step_size;  // learning_rate / (1 - beta1^t)
  float decay;      // learning_rate * weight_decay
};

struct AdamWTable {
  /// value may be null: then only master is written.
  void (*update)(bf16* value, float* master, float* m, float* v, const float* grad, int64_t n,
                 const AdamWFactors& factors);
};
OSPREY_ISA_TABLE(AdamWTable, adamw_table)

}  // namespace osprey::cpu
