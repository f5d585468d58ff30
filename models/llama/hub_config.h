#pragma once
// The config.json of a Llama, Mistral, Qwen2, Qwen3 or Osprey directory as a model spec.

#include "models/hf/config.h"
#include "models/spec.h"

namespace osprey {

/// Reads the keys of transformers 4 and of 5 (rope_parameters). Errors: options that Osprey does not compute.
ModelSpec read_llama_config(const HubConfig& config);

}  // namespace osprey
