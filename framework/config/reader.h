#pragma once
// A YAML text into a spec: every key is checked against the fields() of the spec, and everything that is
// wrong with a recipe is reported at once.

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "framework/config/fields.h"

namespace osprey {

/// Reads `text` (called `name` in messages) with the assignments `overrides` ("key.path=value") applied into
/// whatever `visit` declares. Keys that are absent keep their defaults.
/// Errors: one Error with a line per problem, at most 20, each like
/// "recipes/x.yaml:12: model.hiden_size is not a key; did you mean hidden_size? (keys of model: ...)".
void read_yaml(std::string_view text, const std::string& name, const std::vector<std::string>& overrides,
               const std::function<void(Fields&)>& visit);

/// The bytes of a recipe file. Errors: no such file, a folder, or more than 1 MiB.
std::string load_yaml_text(const std::string& path);

/// A spec (a struct with fields()) from a text.
template <class Spec>
Spec read_spec(std::string_view text, const std::string& name,
               const std::vector<std::string>& overrides = {}) {
  Spec spec;
  read_yaml(text, name, overrides, [&](Fields& f) { spec.fields(f); });
  return spec;
}

/// The candidate that a person most likely meant by `word`, or "" when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace osprey
