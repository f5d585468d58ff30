#pragma once
// What a family says of its Hugging Face directories: names, config.json, and what transformers cannot say.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/hub.h"
#include "models/hf/config.h"
#include "models/hf/context.h"
#include "models/spec.h"

namespace osprey {

struct HubFamily {
  /// The values of model_type that read() knows.
  std::vector<std::string> types;
  /// The spec of a config.json. Errors: options that Osprey does not compute, by key.
  ModelSpec (*read)(const HubConfig& config) = nullptr;
  nlohmann::ordered_json (*config)(const ModelSpec& spec, const HubContext& context) = nullptr;
  /// Every tensor as a formula over Osprey's parameters, the embedding first.
  std::vector<HubTensor> (*tensors)(const ModelSpec& spec) = nullptr;
  /// What names begin with; exporters have left it out, or part of it. The first is what we write.
  std::vector<std::string> prefixes;
  /// Endings of buffers that exporters wrote and no one needs.
  std::vector<std::string> ignored;
  /// The head as a tensor of its own.
  std::string head = "lm_head.weight";
  /// The recipe key that no architecture of transformers can express, if any.
  std::optional<std::string> (*beyond)(const ModelSpec& spec) = nullptr;
};

extern const HubFamily llama_hub, gpt2_hub, opt_hub;

/// All of them.
std::vector<const HubFamily*> hub_families();
/// Whose names a spec's tensors have.
const HubFamily& hub_family(const ModelSpec& spec);

}  // namespace osprey
