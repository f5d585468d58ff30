#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"

namespace osprey::cpu {

struct SumOfSquaresTable {
  double (*sum)(const float* x, int64_t n);
};
OSPREY_ISA_TABLE(SumOfSquaresTable, sum_of_squares_table)

}  // namespace osprey::cpu
