#pragma once
// Shared by the tokenizers of this folder only.

#include "framework/data/tokenizer.h"

namespace osprey {

/// Writes osprey_tokenizer.json.
void save_tokenizer_label(const Tokenizer& tokenizer, const std::string& directory);

}  // namespace osprey
