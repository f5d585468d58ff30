#pragma once
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

/// One contiguous run of rows. T is float or bf16; strides in elements.
template <class T>
struct NormRows {
  int64_t rows, cols;
  const T* x;
  int64_t x_stride;
  T* out;  // y, or dx (may be null)
  int64_t out_stride;
  const T* dy;  // backward only
  int64_t dy_stride;
  const T* weight;
  int64_t weight_count;  // cols, or 1
  const T* bias;         // LayerNorm forward
  float* stats;          // rstd per row; LayerNorm: mean, rstd per row
  float* partial;        // backward: dweight of this run (weight_count), LayerNorm: then dbias (cols)
  float eps;
  const T* base;  // backward: what dx is added to (may be out, may be null)
  int64_t base_stride;
};

struct NormTable {
  void (*rmsnorm_forward_f32)(const NormRows<float>&);
  void (*rmsnorm_forward_bf16)(const NormRows<bf16>&);
  void (*rmsnorm_backward_f32)(const NormRows<float>&);
  void (*rmsnorm_backward_bf16)(const NormRows<bf16>&);
  void (*layernorm_forward_f32)(const NormRows<float>&);
  void (*layernorm_forward_bf16)(const NormRows<bf16>&);
  void (*layernorm_backward_f32)(const NormRows<float>&);
  void (*layernorm_backward_bf16)(const NormRows<bf16>&);
};
OSPREY_ISA_TABLE(NormTable, norm_table)

}  // namespace osprey::cpu
