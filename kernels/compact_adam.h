#pragma once
// Adam in little memory: moments in bf16 or 8 bits, bf16 weights without a master, and steps that somebody
// else takes. Where everything is fp32, kernels/adamw.h is the faster one.

#include "kernels/numerics/adamw.h"
#include "kernels/step_control.h"

namespace osprey::kernels {

/// A moment of every element. Shapes: values f32, bf16 or u8 (n); scales (ceil(n / 256)) f32 with u8, else
/// undefined. Eight-bit codes are those of numerics/dynamic_code.h, without a sign for the second moment.
struct StoredMoment {
  Tensor values;
  Tensor scales = {};
};

/// m and v become the moments after grad_scale * grad, as in kernels/adamw.h with t = step - since + 1. Then
/// either, where `weight` is defined,
///   weight -= lr (weight_decay weight + d),   rounded = weight,
/// or `direction` = d, where d = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps).
/// Shapes: all (n), contiguous; grad f32; weight and direction f32 or bf16; rounded bf16, only with an f32
/// weight. Numerics: fp32 inside. The step is taken with the moments before they are rounded for storage.
/// What is stored as bf16 is rounded by chance, so that small steps are kept on average: draws are a function
/// of (seed, stream, step, first_element + i). `direction` and `rounded` are rounded to nearest. Nothing is
/// written when the control's step_apply is 0. Results do not depend on threads.
struct CompactAdam {
  Tensor weight = {};
  Tensor rounded = {};
  Tensor direction = {};
  Tensor grad;
  StoredMoment m, v;
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  EpsPlace eps_place = EpsPlace::corrected_root;
  int64_t since = 0;
  uint64_t seed = 0, stream = 0;
  int64_t first_element = 0;  // where this range begins in its parameter; a multiple of 256 with 8 bits
  Tensor control;             // see kernels/step_control.h
};
void compact_adam(const Queue& queue, const CompactAdam& args);

/// weight -= factor (step_size x + decay weight), rounded = weight; factor is the control's
/// step_learning_rate_factor. Nothing changes when its step_apply is 0.
/// Shapes: all (n), contiguous; x f32; weight f32 or bf16, which is rounded by chance as above; rounded bf16,
/// only with an f32 weight.
struct ApplyStep {
  Tensor weight;
  Tensor rounded = {};
  Tensor x;
  double step_size = 0;
  double decay = 0;
  uint64_t seed = 0, stream = 0;
  int64_t first_element = 0;
  Tensor control;
};
void apply_step(const Queue& queue, const ApplyStep& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void compact_adam(const Queue& queue, const kernels::CompactAdam& args);
void apply_step(const Queue& queue, const kernels::ApplyStep& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void compact_adam(const Queue& queue, const kernels::CompactAdam& args);
void apply_step(const Queue& queue, const kernels::ApplyStep& args);
}  // namespace osprey::cuda
