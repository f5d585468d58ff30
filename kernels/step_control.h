#pragma once
// The scalars of one optimizer step. They lie on the device, so that the kernels of a step pass them on to
// each other and the host neither waits for one nor has to be asked: it uploads three before the step and may
// read all of them a step later. A captured step can be replayed, because nothing of it stands in kernel
// arguments.

#include <optional>

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// Places in the f64 tensor (step_scalars) that an optimizer step lives on.
enum StepScalar : int {
  // From the host, before the step.
  step_loss_scale,  // what losses are multiplied by before backward: 1 / targets of the global batch
  step_learning_rate_factor,  // of the schedule
  step_number,                // 0-based
  // Added up by kernels; then summed over ranks.
  step_loss,            // nats, summed over targets
  step_tokens,          // targets counted
  step_sum_of_squares,  // of all gradients
  // Decided from these, the same on all ranks.
  step_grad_scale,  // what gradients are multiplied by: clipping
  step_apply,       // 1, or 0 when the update is skipped because loss or gradient is not finite
  step_scalars,
};

/// Decides step_grad_scale and step_apply from the sums. Shapes: control (step_scalars) f64.
/// After it the gradients' norm is min(norm, limit); `max_grad_norm` off: never scaled.
struct DecideStep {
  Tensor control;
  std::optional<double> max_grad_norm;
};
void decide_step(const Queue& queue, const DecideStep& args);

/// Throws unless `control` is (step_scalars) f64 on the queue's device.
void require_control(const char* where, const Queue& queue, const Tensor& control);

}  // namespace osprey::kernels

namespace osprey::cpu {
void decide_step(const Queue& queue, const kernels::DecideStep& args);
}
namespace osprey::cuda {
void decide_step(const Queue& queue, const kernels::DecideStep& args);
}
