#pragma once
// From a recipe entry to an optimizer.

#include <memory>

#include "optim/groups.h"

namespace osprey {

/// Errors: throws for settings that fields() would have refused.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerGroupSpec& spec);

}  // namespace osprey
