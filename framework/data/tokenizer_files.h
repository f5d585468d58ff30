#pragma once
// Shared by the tokenizers of this folder only.

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "framework/data/special_ids.h"
#include "framework/data/tokenizer.h"

namespace osprey {

/// Writes osprey_tokenizer.json.
void save_tokenizer_label(const Tokenizer& tokenizer, const std::string& directory);

/// From the bytes of a sentencepiece model; `name` is for messages, `beside` is carried along.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model, const std::string& name,
                                                        TokenizerFiles beside = {});

/// Where a tokenizer.json stands, and what stands beside it.
struct BpeFiles {
  std::string path;  // of the tokenizer.json, for messages
  std::filesystem::path directory;
  std::optional<SpecialIds>
      ids;  // as osprey_tokenizer.json has them; absent: the directory's other files say
  TokenizerFiles beside;
};

/// From the text of a tokenizer.json. Errors: everything in it that Osprey does not know is named.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(std::string source, const BpeFiles& files);

}  // namespace osprey
