#pragma once
// AdamW as one pass over memory.

#include <span>

#include "kernels/numerics/adamw.h"
#include "kernels/step_control.h"

namespace osprey::kernels {

/// A flat range of one parameter and its state. Shapes: all five have one element count and are contiguous.
struct AdamWPiece {
  Tensor value;   // f32 or bf16: written
  Tensor master;  // f32: read and written
  Tensor grad;    // f32
  Tensor m;       // f32: read and written
  Tensor v;       // f32: read and written
};

/// One step of Adam with decoupled weight decay, on many ranges in one pass:
///   g = grad_scale * grad,  m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2,
///   p -= lr * (weight_decay p + m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps)),  t = step - since
///   + 1,
/// where grad_scale, step and lr = learning_rate * step_learning_rate_factor are read from `control`; nothing
/// changes when its step_apply is 0.
/// Aliasing: `value` is `master` itself when it is f32, and never overlaps it when it is bf16.
/// Numerics: fp32; the bias corrections are formed in double. eps stands beside the corrected root, as in
/// torch.optim.AdamW, unless eps_place says otherwise. Results do not depend on threads or on how a parameter
/// is cut into ranges.
struct AdamW {
  std::span<const AdamWPiece> pieces;
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  EpsPlace eps_place = EpsPlace::corrected_root;
  int64_t since = 0;  // the step at which m and v were zero
  Tensor control;     // see kernels/step_control.h
};
void adamw(const Queue& queue, const AdamW& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void adamw(const Queue& queue, const kernels::AdamW& args);
}
namespace osprey::cuda {
void adamw(const Queue& queue, const kernels::AdamW& args);
}
