#pragma once
#include "kernels/block_format.h"

namespace osprey::cpu {

/// Elements [col, col + n) of a row as numbers; n is at most quantize_run, col a multiple of 32.
void decode_run(float* v, const Packed& p, int64_t row, int64_t col, int64_t n);

}  // namespace osprey::cpu
