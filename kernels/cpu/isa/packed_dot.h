#pragma once
// One row of packed weights times a few rows of x; see kernels/cpu/packed_linear.cpp.

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cpu {

struct PackedDotTable {
  /// y[r] += the dot product of w and row r of x, for n numbers, n at most 1024 or so.
  void (*add_dots)(float* y, const float* w, const float* x, int64_t x_stride, int64_t rows, int64_t n);
  /// v[i] as a bf16 number.
  void (*round_bf16)(float* v, int64_t n);
  /// y[r] = the dot product of a row of mxfp4 and row r of x, by products of bf16 pairs, each block's sum
  /// times its scale; scales (k / 32) floats. At most 16 rows. Null where the CPU has no AVX512-BF16.
  void (*mxfp4_bf16)(float* y, const uint8_t* codes, const float* scales, const bf16* x, int64_t x_stride,
                     int64_t rows, int64_t k);
  /// scales[i] = 2^(codes[i] - 127)
  void (*e8m0_scales)(float* scales, const uint8_t* codes, int64_t n);
};
OSPREY_ISA_TABLE(PackedDotTable, packed_dot_table)

}  // namespace osprey::cpu
