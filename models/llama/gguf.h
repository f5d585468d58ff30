#pragma once
// The Llama family as a GGUF file: names, keys, and the order of rows that llama.cpp's rotation wants.

#include <filesystem>
#include <string>

#include "framework/checkpoint/gguf.h"
#include "framework/checkpoint/hub.h"
#include "models/hf/context.h"
#include "models/spec.h"

namespace osprey {

/// Everything but the tokenizer: general.* and the keys of the architecture, llama (Mistral included), qwen2
/// or qwen3. Where layers have a window, which llama.cpp does not compute for these, context_length is the
/// window: up to there both are the same. Errors: a model that llama.cpp does not compute, by the key of the
/// recipe.
GgufKeys gguf_keys(const ModelSpec& spec, const HubContext& context, const std::string& model_name,
                   GgufType type);

/// Writes the file. Matrices are of `type`; with mxfp4, embedding and head are q8_0. Vectors are F32.
FileRecord write_gguf(const Queue& queue, const std::filesystem::path& path, const GgufKeys& keys,
                      const ModelSpec& spec, const HubContext& context, GgufType type,
                      const ReadParameter& read);

}  // namespace osprey
