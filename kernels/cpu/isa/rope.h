#pragma once
// Rotary positions on raw pointers, compiled for each instruction set; see kernels/cpu/rope.cpp.

#include <stdint.h>

#include "kernels/cpu/isa.h"

namespace osprey::cpu {

/// Heads side by side in each of `rows` rows; strides in elements.
struct RopeRows {
  int64_t rows, heads, head_size;
  const int32_t* positions;
  const float *cosines, *sines;  // (positions, D/2)
  const void* weight;            // (D), or null: no norm
  float eps;
  void* x;  // forward: in and out; backward: dx, may be null
  int64_t x_stride;
  void* saved;  // forward: out, may be null; backward: in
  int64_t saved_stride;
  const void* dy;
  int64_t dy_stride;
  float* dweight;  // (D) to add to; null without a norm
};

struct RopeTable {
  void (*forward_f32)(const RopeRows&);
  void (*forward_bf16)(const RopeRows&);
  void (*backward_f32)(const RopeRows&);
  void (*backward_bf16)(const RopeRows&);
};
OSPREY_ISA_TABLE(RopeTable, rope_table)

}  // namespace osprey::cpu
