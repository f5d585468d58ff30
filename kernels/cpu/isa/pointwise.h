#pragma once
#include <cstdint>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/activation.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

/// All functions work on one row (or one flat range) of n elements.
struct PointwiseTable {
  void (*add_f32)(float* y, const float* a, const float* b, int64_t n);
  void (*add_bf16)(bf16* y, const bf16* a, const bf16* b, int64_t n);
  void (*accumulate_bf16)(float* y, const bf16* x, int64_t n);  // y += x
  void (*accumulate_f32)(float* y, const float* x, int64_t n);
  void (*swiglu_forward_f32)(float* h, const float* gate, const float* up, int64_t n);
  void (*swiglu_forward_bf16)(bf16* h, const bf16* gate, const bf16* up, int64_t n);
  void (*swiglu_backward_f32)(float* dgate, float* dup, const float* dh, const float* gate, const float* up,
                              int64_t n);
  void (*swiglu_backward_bf16)(bf16* dgate, bf16* dup, const bf16* dh, const bf16* gate, const bf16* up,
                               int64_t n);
  void (*activation_f32)(float* y, const float* x, int64_t n, Activation activation);
  void (*activation_bf16)(bf16* y, const bf16* x, int64_t n, Activation activation);
  void (*activation_backward_f32)(float* dx, const float* dy, const float* x, int64_t n,
                                  Activation activation);
  void (*activation_backward_bf16)(bf16* dx, const bf16* dy, const bf16* x, int64_t n, Activation activation);
};
OSPREY_ISA_TABLE(PointwiseTable, pointwise_table)

}  // namespace osprey::cpu
