#include "optim/registry.h"

#include "optim/adamw.h"

namespace osprey {

std::unique_ptr<Optimizer> make_optimizer(const OptimizerGroupSpec& spec) {
  switch (spec.kind) {
    case OptimizerGroupSpec::Kind::adamw:
      require(spec.betas.size() == 2, "optim", "betas must be two numbers, got {}", spec.betas.size());
      return std::make_unique<AdamW>(AdamW::Settings{.learning_rate = spec.learning_rate,
                                                     .weight_decay = spec.weight_decay,
                                                     .beta1 = spec.betas[0],
                                                     .beta2 = spec.betas[1],
                                                     .eps = spec.eps});
    case OptimizerGroupSpec::Kind::muon:
      return std::make_unique<Muon>(
          Muon::Settings{.learning_rate = spec.learning_rate,
                         .weight_decay = spec.weight_decay,
                         .momentum = spec.momentum,
                         .form = spec.nesterov ? kernels::Momentum::nesterov : kernels::Momentum::plain,
                         .newton_schulz = spec.newton_schulz,
                         .steps = static_cast<int>(spec.ns_steps),
                         .scale = spec.scale});
  }
  fail("optim", "unknown optimizer kind");
}

}  // namespace osprey
