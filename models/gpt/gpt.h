#pragma once
// The GPT family: pre-norm blocks with LayerNorm, learned positions, an MLP of two matrices, biases
// everywhere. GPT-2 with gelu, OPT with relu.

#include <memory>

#include "framework/model.h"
#include "models/spec.h"

namespace osprey {

std::unique_ptr<LanguageModel> make_gpt(const ModelSpec& spec);

}  // namespace osprey
