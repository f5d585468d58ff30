#include "models/make_model.h"

#include "models/gpt/gpt.h"
#include "models/llama/llama.h"

namespace osprey {

std::unique_ptr<LanguageModel> make_model(const ModelSpec& spec, int64_t sequence_len) {
  if (spec.family == ModelSpec::Family::gpt) return make_gpt(spec);
  return make_llama(spec, sequence_len);
}

}  // namespace osprey
