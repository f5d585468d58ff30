#include "launch/recipe.h"

#include "framework/config/dumper.h"
#include "framework/config/reader.h"

namespace osprey {

void Recipe::fields(Fields& f, std::optional<int64_t> ranks) {
  f.section("model", model, "what is trained");
  f.section("telemetry", telemetry, "what of a run is written down");
  (void)ranks;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides, std::optional<int64_t> ranks) {
  Recipe recipe;
  read_yaml(load_yaml_text(path), path, overrides, [&](Fields& f) { recipe.fields(f, ranks); });
  return recipe;
}

std::string dump_recipe(const Recipe& recipe) { return dump_spec(recipe); }

}  // namespace osprey
