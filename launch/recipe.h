#pragma once
// The recipe: every spec of the house in one tree. Each is declared beside its owner; what concerns two of
// them at once is checked here.

#include <optional>
#include <string>
#include <vector>

#include "framework/config/fields.h"
#include "framework/telemetry/spec.h"
#include "models/llama/llama.h"

namespace osprey {

struct Recipe {
  ModelSpec model;
  TelemetrySpec telemetry;

  /// `ranks` is known under mpirun and to `osprey check --ranks`; rules that need it wait for it.
  void fields(Fields& f, std::optional<int64_t> ranks = {});
};

/// Reads, overrides and checks a recipe file.
/// Errors: all problems in one Error, a line each, with file and line; see read_yaml.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::optional<int64_t> ranks = {});

/// The recipe with every default written out, as YAML that load_recipe reads back to the same.
std::string dump_recipe(const Recipe& recipe);

}  // namespace osprey
