#pragma once
// The parts of APOLLO (Zhu et al. 2412.05270): random projections, and gradients whose channels are scaled as
// Adam scales those of their projections.

#include "kernels/step_control.h"

namespace osprey::kernels {

/// y[i] = deviation * a standard normal, a function of (seed, stream, d y.numel() + i) with d = step /
/// refresh_every rounded down: the same values for refresh_every steps, then others. Shapes: y f32,
/// contiguous. Numerics: drawn in double and rounded to fp32, times deviation, rounded again; devices may
/// differ in the last bit of logarithm and cosine.
struct DrawNormal {
  Tensor y;
  double deviation = 1;
  int64_t refresh_every = 1;
  uint64_t seed = 0, stream = 0;
  Tensor control;
};
void draw_normal(const Queue& queue, const DrawNormal& args);

/// Rows or columns that have a factor each, or the whole matrix.
enum class Channels { rows, columns, whole };

/// The factors of a gradient G, from what Adam makes (D) of its projection (R):
///   s_c = |D_c| / |R_c|                       (0 where R_c is 0)
///   n = |s G|,  l = min(1, growth previous / n)   (1 where previous is 0)
///   factors = l s,  previous = l n
/// Norms are Euclidean. Multiplying G and R by one number changes nothing but `factors`, by its inverse: so G
/// and R are those before clipping where D is that after it. Shapes: gradient (out, in); direction and
/// projected alike, (out, r) with rows, (r, in) with columns, either with whole; factors (out), (in) or (1);
/// previous (1); all f32, contiguous. Numerics: sums in double in an order fixed by the shapes. Where the
/// control's step_apply is 0, `previous` stays and `factors` are arbitrary. Reference: 2412.05270, algorithm
/// 1; the limit is that of Fira, 2410.01623.
struct ScalingFactors {
  Tensor factors;
  Tensor previous;
  Tensor direction, projected, gradient;
  Channels channels = Channels::rows;
  double growth = 1.01;
  Tensor control;
};
void scaling_factors(const Queue& queue, const ScalingFactors& args);

/// y = x with every channel multiplied by its factor. Shapes: y, x (N, C), factors (N), (C) or (1); all f32,
/// contiguous. Aliasing: y may be x.
struct ScaleChannels {
  Tensor y, x, factors;
  Channels channels = Channels::rows;
};
void scale_channels(const Queue& queue, const ScaleChannels& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void draw_normal(const Queue& queue, const kernels::DrawNormal& args);
void scaling_factors(const Queue& queue, const kernels::ScalingFactors& args);
void scale_channels(const Queue& queue, const kernels::ScaleChannels& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void draw_normal(const Queue& queue, const kernels::DrawNormal& args);
void scaling_factors(const Queue& queue, const kernels::ScalingFactors& args);
void scale_channels(const Queue& queue, const kernels::ScaleChannels& args);
}  // namespace osprey::cuda
