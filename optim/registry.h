#pragma once
// From a recipe entry to an optimizer.

#include <memory>

#include "optim/groups.h"

namespace osprey {

/// Errors: throws for settings that fields() would have refused.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerGroupSpec& spec, const FinetuneSpec& finetune = {});
/// The same for matrices that are trained in a subspace; null where the optimizer has no such form.
std::unique_ptr<Optimizer> make_subspace_optimizer(const OptimizerGroupSpec& spec,
                                                   const FinetuneSpec& finetune = {});
/// The same for matrices whose gradients `finetune` scales.
std::unique_ptr<Optimizer> make_scaling_optimizer(const OptimizerGroupSpec& spec,
                                                  const FinetuneSpec& finetune);

}  // namespace osprey
