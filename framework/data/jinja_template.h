#pragma once
// A chat template in Jinja, as model directories carry it.

#include <memory>
#include <string>

#include "framework/data/chat_template.h"

namespace osprey {

/// Special tokens are taken from what the template itself writes, never from what users wrote. An answer is
/// learnt from where a prompt for it would end, up to the first special token behind it. `name` is for
/// messages; `tokenizer` must outlive the template. Errors: throws for a template that is not of the part of
/// Jinja that jinja/parser.h reads, that fails on a question with its answer, or that puts no special token
/// behind an answer. render() throws what the template raises.
std::unique_ptr<ChatTemplate> make_jinja_template(const std::string& source, const std::string& name,
                                                  const Tokenizer& tokenizer);

}  // namespace osprey
