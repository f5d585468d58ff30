#pragma once
// Runs of one row on their way into packed blocks and out of them; see kernels/cpu/quantize.cpp.

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cpu {

constexpr int64_t quantize_run = 1024;  // elements of a row that are worked on together

/// At most quantize_run elements of a row, from a multiple of 32 on.
struct EncodeRun {
  const float* v;        // readable up to a multiple of 16
  int64_t n, block;      // a multiple of 16; or n and any number, for one scale
  const float* inverse;  // of each block
  float limit;           // clip_limit()
  uint8_t* codes;
  uint8_t* mask;  // or null; n is a multiple of 8 then
  int stochastic;
  uint64_t seed, stream, first_draw;
};

/// Groups of `size` neighbours: v = (v .* signs) H * factor, or its transpose v = (v H * factor) .* signs.
struct RotateRun {
  float* v;
  int64_t n;
  int size;
  const uint32_t* signs;  // (size): 0 or the sign bit of a float
  float factor;
  int transposed;
};

struct QuantizeTable {
  void (*load_f32)(float* v, const float* x, int64_t n);
  void (*load_bf16)(float* v, const bf16* x, int64_t n);
  /// v[c * v_stride + r] = x[r * x_stride + c]
  void (*load_columns_f32)(float* v, int64_t v_stride, const float* x, int64_t x_stride, int64_t rows,
                           int64_t cols);
  void (*load_columns_bf16)(float* v, int64_t v_stride, const bf16* x, int64_t x_stride, int64_t rows,
                            int64_t cols);
  /// y (+)= v
  void (*store_f32)(float* y, const float* v, int64_t n, int add);
  void (*store_bf16)(bf16* y, const float* v, int64_t n, int add);
  void (*multiply)(float* v, int64_t n, float factor);
  void (*rotate)(const RotateRun&);
  /// Zero where bit i % 8 of mask[i / 8] is; n is a multiple of 8.
  void (*keep)(float* v, const uint8_t* mask, int64_t n);
  /// Magnitude bits of each block's largest element, in an array of whole groups of 16; `block` is a multiple
  /// of 16 that divides n, or is n.
  void (*largest)(uint32_t* largest, const float* v, int64_t n, int64_t block);
  /// Magnitude bits, as those of an fp32, of the largest finite number.
  uint32_t (*largest_finite_bf16)(const bf16* x, int64_t n);
  /// Sum of magnitudes in units of 2^unit, see unit_exponent(); n <= quantize_run.
  int64_t (*magnitudes)(const float* v, int64_t n, int unit);
  /// Sum of dy times slope_by_step() of x times `inverse`, of int4 or int8; n <= quantize_run.
  double (*slope_sum)(const float* dy, const float* x, int64_t n, float inverse, Element e);
  /// From a run of bf16 numbers to mxfp4 at once, by the rules floor to rceil, rounded to nearest: what the
  /// functions above and below do, in 16-bit arithmetic.
  void (*mxfp4_of_bf16)(uint8_t* codes, uint8_t* scales, const bf16* x, int64_t n, ScaleRule rule);
  /// Scales of blocks of e2m1 by the rule mse, as power_scales().
  void (*deviation_scales)(uint8_t* codes, float* inverse, const uint32_t* largest, const float* v,
                           int64_t count, int64_t block);
  /// By how much the squared error of e2m1 with scale `a` is more than with `b`, in squared units of 2^unit.
  int64_t (*error_difference)(const float* v, int64_t n, BlockScale a, BlockScale b, float tensor_scale,
                              int unit);
  // By Element:
  /// Scales of blocks by the rules floor to rceil: their codes, and what elements are multiplied by.
  void (*power_scales[7])(uint8_t* codes, float* inverse, const uint32_t* largest, int64_t count,
                          ScaleRule rule);
  void (*encode[7])(const EncodeRun&);
  void (*decode[7])(float* v, const uint8_t* codes, int64_t n);  // elements, before their scales
};
OSPREY_ISA_TABLE(QuantizeTable, quantize_table)

}  // namespace osprey::cpu
