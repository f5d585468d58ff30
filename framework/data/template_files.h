#pragma once
// The template that a recipe or a directory names.

#include <memory>
#include <optional>
#include <string>

#include "framework/data/chat_template.h"

namespace osprey {

/// The Jinja that a model or tokenizer directory carries: chat_template.jinja, or `chat_template` in
/// tokenizer_config.json; nullopt where it carries none.
/// Errors: throws for damaged files.
std::optional<std::string> directory_template(const std::string& directory);

/// `choice` is a name of make_named_template(), a file in .jinja, or auto: the template that the tokenizer's
/// `directory` carries (chat_template.jinja, or `chat_template` in tokenizer_config.json), and alpaca where
/// it carries none. `tokenizer` must outlive the template. Errors: throws for a file that is missing or
/// damaged, and for a template that Osprey cannot write.
std::unique_ptr<ChatTemplate> load_template(const std::string& choice, const std::string& directory,
                                            const Tokenizer& tokenizer);

}  // namespace osprey
