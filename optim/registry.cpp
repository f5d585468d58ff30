#include "optim/registry.h"

#include "optim/apollo.h"
#include "optim/subspace_adam.h"

namespace osprey {

static AdamW::Settings adamw_settings(const OptimizerGroupSpec& spec, const FinetuneSpec& finetune) {
  require(spec.betas.size() == 2, "optim", "betas must be two numbers, got {}", spec.betas.size());
  return {.learning_rate = spec.learning_rate,
          .weight_decay = spec.weight_decay,
          .beta1 = spec.betas[0],
          .beta2 = spec.betas[1],
          .eps = spec.eps,
          .moments = spec.moments,
          .eps_place = finetune.reference ? EpsPlace::plain_root : EpsPlace::corrected_root};
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerGroupSpec& spec, const FinetuneSpec& finetune) {
  switch (spec.kind) {
    case OptimizerGroupSpec::Kind::adamw:
      return std::make_unique<AdamW>(adamw_settings(spec, finetune));
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

std::unique_ptr<Optimizer> make_subspace_optimizer(const OptimizerGroupSpec& spec,
                                                   const FinetuneSpec& finetune) {
  if (spec.kind != OptimizerGroupSpec::Kind::adamw) return nullptr;
  return std::make_unique<SubspaceAdam>(adamw_settings(spec, finetune));
}

std::unique_ptr<Optimizer> make_scaling_optimizer(const OptimizerGroupSpec& spec,
                                                  const FinetuneSpec& finetune) {
  if (spec.kind != OptimizerGroupSpec::Kind::adamw) return nullptr;
  const bool whole = finetune.scaling == FinetuneSpec::Scaling::tensor;
  return std::make_unique<Apollo>(
      adamw_settings(spec, finetune),
      Apollo::Projection{.rank = finetune.rank,
                         .refresh_every = finetune.refresh_every,
                         .scale = finetune.scale,
                         .scaling = whole ? Apollo::Scaling::tensor : Apollo::Scaling::channel});
}

}  // namespace osprey
