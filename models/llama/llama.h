#pragma once
// The Llama family: pre-norm blocks, rotary positions (half-split), SwiGLU, grouped-query attention.
// Each part is chosen in the recipe.

#include <memory>

#include "framework/model.h"
#include "models/spec.h"

namespace osprey {

/// sequence_len is needed by clipped softmax (alpha) only.
std::unique_ptr<LanguageModel> make_llama(const ModelSpec& spec, int64_t sequence_len);

}  // namespace osprey
