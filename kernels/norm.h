#pragma once
// RMSNorm, SSNorm (RMSNorm with one learnable scale) and LayerNorm.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"

namespace osprey::kernels {

/// y = weight * x / sqrt(mean(x^2) + eps), per row.
/// Shapes: y, x (N, C), f32 or bf16; rstd (N) f32; weight (C), or (1) for SSNorm.
/// Numerics: fp32 inside, one rounding at the end.
/// Reference: Zhang and Sennrich 2019; SSNorm: Outlier-Safe Pre-Training, arXiv 2506.19697, eq. 3.
struct RmsnormForward {
  Tensor y, rstd, x, weight;
  float eps = 1e-6f;
};
void rmsnorm_forward(const Queue& queue, const RmsnormForward& args);

/// A residual sum and its norm in one pass: sum = a + b, y = rmsnorm(sum).
/// Shapes: as forward; sum, a, b like y. Aliasing: sum may be a or b.
/// Numerics: the sum is rounded before the norm, so both are what add() and rmsnorm_forward() give.
struct AddRmsnormForward {
  Tensor sum, y, rstd, a, b, weight;
  float eps = 1e-6f;
};
void add_rmsnorm_forward(const Queue& queue, const AddRmsnormForward& args);

/// dx = rstd * (w dy - xhat * mean(w dy xhat)); dweight = sum over rows of dy * xhat, for a scalar
/// weight also over columns. With `dsum`, the gradient of x from its other reader, dx becomes their sum.
/// Shapes: as forward; dsum like x; dweight like weight, f32; partial (norm_partials(queue, N), weight count)
/// f32 scratch. Aliasing: dx may be dsum.
/// Numerics: dweight is summed over fixed chunks of rows, whatever the number of threads; dx is rounded once.
/// Errors: throws when a dx that is added to comes with a dsum.
struct RmsnormBackward {
  Accum dx, dweight;
  Tensor dy, x, weight, rstd, partial;
  Tensor dsum = {};
};
void rmsnorm_backward(const Queue& queue, const RmsnormBackward& args);

/// y = weight * (x - mean) * rstd + bias, per row. Shapes: stats (N, 2) f32 = [mean, rstd].
/// Reference: Ba et al. 2016.
struct LayernormForward {
  Tensor y, stats, x, weight, bias;
  float eps = 1e-5f;
};
void layernorm_forward(const Queue& queue, const LayernormForward& args);

/// Shapes: partial (norm_partials(queue, N), 2C) f32 scratch.
struct LayernormBackward {
  Accum dx, dweight, dbias;
  Tensor dy, x, weight, stats, partial;
};
void layernorm_backward(const Queue& queue, const LayernormBackward& args);

/// Rows are reduced in this many chunks on the queue's device.
int64_t norm_partials(const Queue& queue, int64_t rows);

}  // namespace osprey::kernels

namespace osprey::cpu {
void rmsnorm_forward(const Queue& queue, const kernels::RmsnormForward& args);
void add_rmsnorm_forward(const Queue& queue, const kernels::AddRmsnormForward& args);
void rmsnorm_backward(const Queue& queue, const kernels::RmsnormBackward& args);
void layernorm_forward(const Queue& queue, const kernels::LayernormForward& args);
void layernorm_backward(const Queue& queue, const kernels::LayernormBackward& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void rmsnorm_forward(const Queue& queue, const kernels::RmsnormForward& args);
void add_rmsnorm_forward(const Queue& queue, const kernels::AddRmsnormForward& args);
void rmsnorm_backward(const Queue& queue, const kernels::RmsnormBackward& args);
void layernorm_forward(const Queue& queue, const kernels::LayernormForward& args);
void layernorm_backward(const Queue& queue, const kernels::LayernormBackward& args);
}  // namespace osprey::cuda
