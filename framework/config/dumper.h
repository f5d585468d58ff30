#pragma once
// A spec back into YAML: what a run writes as its resolved recipe.

#include <functional>
#include <string>

#include "framework/config/fields.h"

namespace osprey {

/// YAML of everything that `visit` declares, keys in that order, each option that is off as null. Reading it
/// again gives equal values, doubles bit for bit; fields whose condition does not hold are left out.
/// Errors: a number that is not finite.
std::string dump_yaml(const std::function<void(Fields&)>& visit);

template <class Spec>
std::string dump_spec(Spec spec) {
  return dump_yaml([&](Fields& f) { spec.fields(f); });
}

}  // namespace osprey
