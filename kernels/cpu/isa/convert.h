#pragma once
#include "kernels/cpu/isa.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

struct ConvertTable {
  void (*widen)(float* to, const bf16* from, int64_t n);
  void (*narrow)(bf16* to, const float* from, int64_t n);
};
OSPREY_ISA_TABLE(ConvertTable, convert_table)

}  // namespace osprey::cpu
