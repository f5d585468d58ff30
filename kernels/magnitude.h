#pragma once
// Lengths of the rows of a weight, and outputs scaled to rows of other lengths: what DoRA needs beside LoRA.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// norms[r] = |x[r]|. Shapes: norms (rows) f32, contiguous; x (rows, cols) f32, rows may be strided.
/// Numerics: squares and sums in double, in an order that `cols` fixes.
struct RowNorms {
  Tensor norms;
  Tensor x;
};
void row_norms(const Queue& queue, const RowNorms& args);

/// y[r, c] *= (base[c] + change[c]) / norm[c]: rows of length norm become rows of length base + change.
/// Shapes: y (N, C) f32 or bf16, rows may be strided; base, norm (C) f32; change (C) of y's dtype; all
/// contiguous. Numerics: fp32, rounded once; 0 where norm is 0.
/// Reference: DoRA, Liu et al. 2402.09353, eq. 5, with magnitude m = base + change.
struct ScaleLengths {
  Tensor y;
  Tensor base, norm, change;
};
void scale_lengths(const Queue& queue, const ScaleLengths& args);

/// dchange[c] (+)= sum over r of dy[r, c] y[r, c] / (base[c] + change[c]), with y as scale_lengths() left it.
/// The norm is a constant (2402.09353, sec. 4.3). dx of scale_lengths() is scale_lengths() of dy.
/// Shapes: dchange (C) f32; dy, y (N, C) of one dtype, rows may be strided; others as above.
/// Numerics: products and sums in double, on the CPU over rows in order, on a GPU over chunks of rows that
/// the shape fixes; 0 where the length is 0.
struct LengthGradient {
  Accum dchange;
  Tensor dy, y;
  Tensor base, change;
};
void length_gradient(const Queue& queue, const LengthGradient& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void row_norms(const Queue& queue, const kernels::RowNorms& args);
void scale_lengths(const Queue& queue, const kernels::ScaleLengths& args);
void length_gradient(const Queue& queue, const kernels::LengthGradient& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void row_norms(const Queue& queue, const kernels::RowNorms& args);
void scale_lengths(const Queue& queue, const kernels::ScaleLengths& args);
void length_gradient(const Queue& queue, const kernels::LengthGradient& args);
}  // namespace osprey::cuda
