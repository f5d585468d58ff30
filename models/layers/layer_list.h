#pragma once
// Some of the layers of a model, as a recipe names them: numbers and ranges.

#include <cstdint>
#include <string>
#include <vector>

namespace osprey {

/// Why the list is none: an entry that is neither a number such as 3 nor a range such as 4-7 below `layers`.
/// Empty where it is one.
std::string layer_list_problem(const std::vector<std::string>& list, int64_t layers);
/// Of a list without problems.
bool lists_layer(const std::vector<std::string>& list, int64_t layer);
/// The shortest list of the layers that are marked.
std::vector<std::string> layer_list(const std::vector<bool>& marked);

}  // namespace osprey
