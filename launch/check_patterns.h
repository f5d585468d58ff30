#pragma once
// What can be told of a recipe once the parameters of its model are known, and without any memory for them.

#include <string>
#include <vector>

#include "launch/recipe.h"

namespace osprey {

/// Judges the patterns of `quant`, `optim` and `finetune` against the parameters of this very model. Returns
/// lines for people: warnings, what lies packed, when which group of `quant` begins.
/// Errors: throws on patterns that match nothing, formats that do not fit a matrix, and whatever else these
/// sections refuse.
std::vector<std::string> check_patterns(const Recipe& recipe);

}  // namespace osprey
