#include "framework/train/updates_in_backward.h"

#include "kernels/device.h"
#include "kernels/step_control.h"
#include "kernels/sum_of_squares.h"

namespace osprey {

UpdatesInBackward::UpdatesInBackward(const Queue& queue, ParamStore& params, Updater& updater,
                                     const Tensor& control, uint64_t seed)
    : queue_(queue), params_(params), updater_(updater), control_(control), seed_(seed) {
  for (const auto& p : params_.all())
    if (p->row_gradient.defined()) p->row_sink = this;
}

UpdatesInBackward::~UpdatesInBackward() {
  for (const auto& p : params_.all())
    if (p->row_sink == this) p->row_sink = nullptr;
}

/// Adds to the norm that is reported, and stops updates where it is not finite.
void UpdatesInBackward::decide(std::span<const Tensor> gradients) {
  const Tensor sum =
      control_.columns(kernels::step_sum_of_squares, kernels::step_sum_of_squares + 1).view({1});
  kernels::sum_of_squares(queue_, {.xs = gradients, .sum = sum});
  kernels::decide_step(queue_, {.control = control_, .max_grad_norm = {}});
}

void UpdatesInBackward::after_backward(int layer) {
  gradients_.clear();
  for (Parameter* p : params_.bucket(layer).params) {
    if (!p->trainable || p->row_gradient.defined()) continue;
    if (!p->grad_written) kernels::fill_bytes(queue_, p->grad, 0);
    p->grad_written = true;
    gradients_.push_back(p->grad);
    ++p->version;
  }
  if (gradients_.empty()) return;
  decide(gradients_);
  updater_.step_layer(layer, control_, seed_);
}

void UpdatesInBackward::take(Parameter& p, int64_t first, const Tensor& gradient) {
  decide({&gradient, 1});
  updater_.step_rows(p, first, gradient, control_, seed_);
  ++p.version;
}

}  // namespace osprey
