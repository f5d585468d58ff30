#include "framework/data/template_files.h"

#include "kernels/core/check.h"

namespace osprey {

std::unique_ptr<ChatTemplate> load_template(const std::string& choice, const std::string&,
                                            const Tokenizer& tokenizer) {
  return make_named_template(choice == "auto" ? "alpaca" : choice, tokenizer);
}

}  // namespace osprey
