#include "framework/quant/packed_checkpoint.h"

#include <nlohmann/json.hpp>

#include "framework/config/reader.h"
#include "framework/eval/round_to_nearest.h"
#include "framework/files/file.h"

namespace osprey {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* method = "osprey";
constexpr int64_t version = 1;
constexpr size_t most_groups = 256;

const char* name(ScaleRule rule) {
  for (const auto& [word, value] : scale_rules())
    if (value == rule) return word;
  fail("quantization_config", "a scale rule without a name");
}

ordered_json operand_json(const std::optional<QuantOperandSpec>& o) {
  if (!o) return nullptr;
  return {{"format", o->format}, {"scale", name(o->scale)}};
}

}  // namespace

const QuantGroupSpec* QuantizationConfig::packs(const std::string& parameter) const {
  if (!is_block_linear(parameter)) return nullptr;
  const QuantGroupSpec* first = first_match(groups, parameter);
  return first && first->weights ? first : nullptr;
}

QuantizationConfig for_inference(std::span<const QuantGroupSpec> groups, uint64_t seed) {
  QuantizationConfig config{.seed = seed, .groups = {}};
  for (const QuantGroupSpec& trained : groups) {
    QuantGroupSpec& g = config.groups.emplace_back();
    g.match = trained.match;
    g.weights = trained.weights;
    g.activations = trained.activations;
    g.rotation = trained.rotation;
  }
  return config;
}

ordered_json to_json(const QuantizationConfig& config) {
  ordered_json groups = ordered_json::array();
  for (const QuantGroupSpec& g : config.groups)
    groups.push_back({{"match", g.match},
                      {"weights", operand_json(g.weights)},
                      {"activations", operand_json(g.activations)},
                      {"rotation", g.rotation}});
  return {{"quant_method", method}, {"version", version}, {"seed", config.seed}, {"groups", groups}};
}

QuantizationConfig read_quantization_config(const std::string& where, const json& tree) {
  require(tree.is_object(), where, "quantization_config must be an object");
  const auto given = tree.find("quant_method");
  require(given != tree.end() && *given == method, where,
          "quantization_config.quant_method is {}; Osprey runs weights that osprey quantize packed ('{}')",
          given == tree.end() ? "missing" : shown(given->dump()), method);
  QuantizationConfig config;
  for (const auto& [key, value] : tree.items()) {
    if (key == "version")
      require(value == version, where, "quantization_config.version is {}, this Osprey knows {}",
              shown(value.dump()), version);
    else if (key == "seed")
      require(value.is_number_unsigned(), where, "quantization_config.seed must be a whole number, found {}",
              shown(value.dump()));
    else
      require(key == "quant_method" || key == "groups", where, "quantization_config has the unknown key '{}'",
              shown(key));
  }
  for (const char* key : {"version", "seed", "groups"})
    require(tree.contains(key), where, "quantization_config has no '{}'", key);
  config.seed = tree["seed"].get<uint64_t>();
  const json& groups = tree["groups"];
  require(groups.is_array() && !groups.empty() && groups.size() <= most_groups, where,
          "quantization_config.groups must be a list of 1 to {} groups", most_groups);
  for (size_t i = 0; i < groups.size(); ++i) {
    const std::string name = fmt::format("{}: quantization_config.groups[{}]", where, i);
    require(groups[i].is_object(), name, "is no object");
    for (const auto& [key, value] : groups[i].items())
      require(key == "match" || key == "weights" || key == "activations" || key == "rotation", name,
              "has the unknown key '{}'", shown(key));
    // JSON is YAML, and the rules of a recipe hold here as well.
    config.groups.push_back(read_spec<QuantGroupSpec>(groups[i].dump(), name));
  }
  return config;
}

}  // namespace osprey
