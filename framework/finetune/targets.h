#pragma once
// The matrices that a method of fine-tuning treats in its own way.

#include <vector>

#include "framework/finetune/spec.h"
#include "framework/parameter.h"

namespace osprey {

/// The matrices of layers that spec.targets matches, in the order of `params`. Errors: there is none;
/// spec.rank is above the smaller side of one.
std::vector<Parameter*> target_matrices(const FinetuneSpec& spec, const ParamStore& params);

}  // namespace osprey
