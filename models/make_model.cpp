#include "models/make_model.h"

#include "models/llama/llama.h"

namespace osprey {

std::unique_ptr<LanguageModel> make_model(const ModelSpec& spec, int64_t sequence_len) {
  return make_llama(spec, sequence_len);
}

}  // namespace osprey
