#include "launch/packed_base.h"

#include <fmt/ranges.h>

#include <set>

#include "framework/quant/step_sizes.h"
#include "models/hf/hub_model.h"

namespace osprey {

namespace {

/// How the directory that training starts from holds its weights packed; nothing where it does not.
std::optional<QuantizationConfig> stored_packed(const Recipe& recipe) {
  if (recipe.model_path.empty()) return std::nullopt;
  std::optional<QuantizationConfig> config = read_packing(recipe.model_path);
  if (!config) return std::nullopt;
  const FinetuneSpec& f = recipe.finetune;
  require(
      f.adapts(), "model.path",
      "the weights of {} are packed, and packed weights do not train; set finetune.method to lora or dora, which "
      "trains beside them, or take the checkpoint that they were made of",
      recipe.model_path);
  require(f.base_format.empty(), "finetune.base_format", "{} holds its weights packed already; drop the key",
          recipe.model_path);
  require(recipe.quant.empty(), "quant",
          "has nothing to say of the weights of {}, which are packed already; drop it", recipe.model_path);
  for (const QuantGroupSpec& g : config->groups)
    require(!g.activations && g.rotation == 0 && !learns_step(g.weights), "model.path",
            "'{}' of {} is packed for inputs that are rounded as well, or by learnt steps; adapters train "
            "beside weights that alone are packed: osprey quantize CHECKPOINT packed --format mxfp4",
            g.match, recipe.model_path);
  return config;
}

}  // namespace

std::unique_ptr<QuantSchemes> declare_packed_base(const Recipe& recipe, ParamStore& params) {
  std::optional<QuantizationConfig> base = stored_packed(recipe);
  if (!recipe.finetune.base_format.empty()) {
    base.emplace();
    base->groups.emplace_back().weights.emplace().format = recipe.finetune.base_format;
  }
  if (!base) return nullptr;
  std::unique_ptr<QuantSchemes> schemes;
  try {
    schemes = std::make_unique<QuantSchemes>(base->groups, params, base->seed);
  } catch (const Error& e) {
    const bool stored = recipe.finetune.base_format.empty();
    fail(stored ? "model.path" : "finetune.base_format", "does not fit the model: {}", e.what());
  }
  for (const auto& p : params.all())
    if (const QuantGroupSpec* group = base->packs(p->name)) p->stored_format = group->weights->block_format();
  return schemes;
}

std::string packed_base_note(const ParamStore& params) {
  std::set<std::string> formats;
  int64_t count = 0;
  for (const auto& p : params.all()) {
    if (!p->stored_format) continue;
    ++count;
    formats.emplace(name(*p->stored_format));
  }
  return count == 0
             ? ""
             : fmt::format("{} frozen matrices are held packed, in {}", count, fmt::join(formats, ", "));
}

}  // namespace osprey
