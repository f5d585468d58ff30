#pragma once
// Hugging Face directories of small models with drawn weights.

#include <filesystem>

#include "models/make_model.h"

namespace osprey::test {

/// Writes config.json and model.safetensors (bf16) of a model with this spec; weights are a function of the
/// seed.
void write_model_directory(const std::filesystem::path& directory, const ModelSpec& spec, uint64_t seed = 1);

}  // namespace osprey::test
