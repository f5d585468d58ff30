#include "optim/adamw.h"

#include <algorithm>
#include <array>

#include "kernels/adamw.h"

namespace osprey {

std::vector<StateSpec> AdamW::states() const { return {{"adam_m", DType::f32}, {"adam_v", DType::f32}}; }

int64_t AdamW::workspace_bytes(const Queue&, std::span<const ParamPiece>) const { return 0; }

double AdamW::cost(const Shape& full_shape) const { return 15.0 * static_cast<double>(full_shape.numel()); }

void AdamW::step(const Queue& queue, std::span<const ParamPiece> pieces, const StepInfo& info) const {
  std::array<kernels::AdamWPiece, 64> some;
  for (size_t begin = 0; begin < pieces.size(); begin += some.size()) {
    const auto part = pieces.subspan(begin, std::min(some.size(), pieces.size() - begin));
    std::transform(part.begin(), part.end(), some.begin(), [](const ParamPiece& p) {
      return kernels::AdamWPiece{
          .value = p.value, .master = p.master, .grad = p.grad, .m = p.state[0], .v = p.state[1]};
    });
    kernels::adamw(queue, {.pieces = {some.data(), part.size()},
                           .learning_rate = settings_.learning_rate,
                           .beta1 = settings_.beta1,
                           .beta2 = settings_.beta2,
                           .eps = settings_.eps,
                           .weight_decay = settings_.weight_decay,
                           .control = info.control});
  }
}

}  // namespace osprey
