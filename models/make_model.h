#pragma once
// The one place that turns a spec into a model of its family.

#include <memory>

#include "framework/model.h"
#include "models/spec.h"

namespace osprey {

/// sequence_len is needed by clipped softmax (alpha) only.
std::unique_ptr<LanguageModel> make_model(const ModelSpec& spec, int64_t sequence_len);

}  // namespace osprey
