#pragma once
// Rotary positions on query and key heads, after an optional RMSNorm of each head (QK-norm), in
// place.

#include "kernels/core/queue.h"
#include "kernels/core/tensor.h"
#include "kernels/numerics/rope.h"

namespace osprey::kernels {

struct RopeForward {
  Tensor q;          // (N, H*D), in and out
  Tensor k;          // (N, G*D), in and out
  Tensor positions;  // (N) i32, at least 0
  int64_t head_size = 0;
  double theta = 10000;
  RopeScaling scaling = {};
  Tensor q_weight = {};  // (D): normalise each query head first; dtype of q
  Tensor k_weight = {};  // (D): likewise for keys
  float eps = 1e-6f;     // of the norms
  Tensor saved =
      {};  // (N, (H+G)*D), out: the heads before the norms; undefined unless backward follows norms
};

/// x = x * rsqrt(mean(x^2) + eps) * weight for each head that has a weight, then each pair
/// (x[i], x[i + D/2]) turns by the angle position * theta^(-2i/D), stretched as `scaling` says, and grows by
/// scaling.magnitude.
/// Shapes: D a multiple of 8 up to 256. Rows of q and k may be strided.
/// Numerics: fp32 in one pass with a single rounding; cosines and sines are computed in fp64 once, on a GPU
/// as turn_by() of kernels/numerics/rope.h does.
/// Errors: throws when shapes or the scaling do not fit; a negative position throws on the CPU, a GPU makes
/// its row NaN. Reference: Su et al., "RoFormer" (2021); half-split pairs as in Hugging Face's Llama.
void rope_forward(const Queue& queue, const RopeForward& args);

struct RopeBackward {
  Tensor dx_q, dx_k;                     // out; undefined: not wanted
  Accum dq_weight = {}, dk_weight = {};  // (D) f32
  Tensor dy_q, dy_k;                     // (N, H*D), (N, G*D)
  Tensor positions;
  int64_t head_size = 0;
  double theta = 10000;
  RopeScaling scaling = {};
  Tensor q_weight = {}, k_weight = {};
  float eps = 1e-6f;
  Tensor saved = {};    // as forward left it; needed with weights only
  Tensor partial = {};  // (rope_partials(queue, N), 2*D) f32 working memory; needed with weights only
};

/// Turns gradients back by the same angles, then through the norms.
/// Aliasing: dx_q may be dy_q and dx_k may be dy_k.
/// Numerics: the number of threads does not change a bit.
void rope_backward(const Queue& queue, const RopeBackward& args);

/// Rows of `partial` for N tokens.
int64_t rope_partials(const Queue& queue, int64_t rows);

}  // namespace osprey::kernels

namespace osprey::cpu {
void rope_forward(const Queue& queue, const kernels::RopeForward& args);
void rope_backward(const Queue& queue, const kernels::RopeBackward& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void rope_forward(const Queue& queue, const kernels::RopeForward& args);
void rope_backward(const Queue& queue, const kernels::RopeBackward& args);
}  // namespace osprey::cuda
