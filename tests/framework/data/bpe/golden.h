#pragma once
// The tokenizers of golden/, and what the tokenizers library makes of hard text with them (make_golden.py).

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/tokenizer.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/paths.h"

namespace osprey::test {

inline const std::vector<std::string> kFamilies = {"gpt2", "llama3", "qwen2",  "smollm",
                                                   "odd",  "llama2", "mistral"};

inline std::string golden_folder() { return source_dir() + "/tests/framework/data/bpe/golden/"; }
inline std::string golden_json(const std::string& family) {
  return slurp(golden_folder() + family + ".json");
}
inline bool is_byte_level(const std::string& family) { return family != "llama2" && family != "mistral"; }

/// Writes a directory like one of Hugging Face.
inline void spill_tokenizer(const std::string& directory, const std::string& tokenizer_json,
                            const std::string& config = {}) {
  std::filesystem::create_directories(directory);
  spill(directory + "/tokenizer.json", tokenizer_json);
  if (!config.empty()) spill(directory + "/tokenizer_config.json", config);
}

inline std::string eos_of(const std::string& family) {
  return is_byte_level(family) ? family == "llama3" ? "<|eot_id|>" : "<|endoftext|>" : "</s>";
}

/// One of golden/, in `directory`.
inline std::unique_ptr<Tokenizer> golden_tokenizer(const std::string& directory, const std::string& family) {
  spill_tokenizer(directory, golden_json(family), "{\"eos_token\": \"" + eos_of(family) + "\"}");
  return load_tokenizer(directory);
}

inline const nlohmann::json& golden_vectors() {
  static const auto vectors = nlohmann::json::parse(slurp(golden_folder() + "vectors.json"));
  return vectors;
}

}  // namespace osprey::test
