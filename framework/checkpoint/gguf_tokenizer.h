#pragma once
// The tokenizer of a Hugging Face directory as keys of a GGUF file.

#include <cstdint>
#include <filesystem>

#include "framework/checkpoint/gguf.h"

namespace osprey {

/// Adds tokenizer.* from tokenizer.model (sentencepiece, BPE) or tokenizer.json (byte-level BPE), and the
/// chat template. The vocabulary is filled up with unused tokens to `vocab_size`, the rows of the embedding.
/// Errors: no tokenizer, one that llama.cpp does not have, or one with more tokens than the embedding has
/// rows.
void add_gguf_tokenizer(GgufKeys& keys, const std::filesystem::path& directory, int64_t vocab_size);

}  // namespace osprey
