#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/numerics/adamw.h"

namespace osprey::cpu {

struct AdamWTable {
  /// value may be null: then only master is written.
  void (*update)(bf16* value, float* master, float* m, float* v, const float* grad, int64_t n,
                 const AdamWFactors& factors);
};
OSPREY_ISA_TABLE(AdamWTable, adamw_table)

}  // namespace osprey::cpu
