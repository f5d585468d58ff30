#pragma once
// From a recipe entry to an optimizer.

#include <memory>

#include "framework/optimizer.h"
#include "optim/groups.h"

namespace osprey {

/// Errors: throws for settings that fields() would have refused.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerGroupSpec& spec);

}  // namespace osprey
