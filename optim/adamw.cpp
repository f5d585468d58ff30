#include "optim/adamw.h"

#include "kernels/adamw.h"

namespace osprey {

std::vector<StateSpec> AdamW::states() const { return {{"adam_m", DType::f32}, {"adam_v", DType::f32}}; }

int64_t AdamW::workspace_bytes(const Queue&, std::span<const ParamPiece>) const { return 0; }

double AdamW::cost(const Shape& full_shape) const { return 15.0 * static_cast<double>(full_shape.numel()); }

void AdamW::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  for (const ParamPiece& p : pieces)
    kernels::adamw(queue, {.value = p.value,
                           .master = p.master,
                           .grad = p.grad,
                           .m = p.state[0],
                           .v = p.state[1],
                           .learning_rate = info.learning_rate,
                           .beta1 = settings_.beta1,
                           .beta2 = settings_.beta2,
                           .eps = settings_.eps,
                           .weight_decay = settings_.weight_decay,
                           .grad_scale = info.grad_scale,
                           .step = info.step});
}

}  // namespace osprey
