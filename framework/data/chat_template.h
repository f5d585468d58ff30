#pragma once
// How a conversation is written for a model: named templates, and how the pieces of one become tokens.
// Special tokens are put in by id, so no text that users wrote can become one.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "framework/data/instruction_row.h"
#include "framework/data/tokenizer.h"

namespace osprey {

/// A stretch of a rendered conversation: one special token, or text.
struct ChatPiece {
  std::string text;              // how `token` is written, where there is one
  std::optional<int32_t> token;  // a special token
  bool train = false;            // part of an answer that is learnt, or the token that ends it
};

/// Const members may be called from several threads at once.
class ChatTemplate {
 public:
  enum class Ask { nothing, answer };  // answer: end where the assistant is to begin
  virtual ~ChatTemplate() = default;

  virtual std::string name() const = 0;
  /// Its Jinja; empty for named templates.
  virtual std::string source() const { return {}; }
  /// Neighbours that are both text and both trained, or both not, are one text to the tokenizer.
  /// Errors: throws for a conversation that the template cannot write, with its reason.
  virtual std::vector<ChatPiece> render(std::span<const Message> conversation, Ask ask) const = 0;
  /// Tokens that end an answer.
  virtual std::vector<int32_t> stop_ids() const = 0;
};

/// The words that make_named_template() takes.
std::vector<std::string> template_names();

/// chatml, llama3, llama2, mistral, gemma, alpaca, vicuna, or none: texts one after the other, answers ended
/// by the end of text. `tokenizer` must outlive the template. Errors: throws for another name, and for a
/// special token that the tokenizer does not have. Reference: the templates that Hugging Face directories of
/// these models carry; alpaca and vicuna as their authors' training code has them.
std::unique_ptr<ChatTemplate> make_named_template(const std::string& name, const Tokenizer& tokenizer);

/// The tokens of rendered pieces, each with whether it is trained. A text is encoded from one change of
/// `train` to the next, so that a prompt has the same tokens in training and when it waits for its answer,
/// and no token straddles the border. The first token is no target of anything.
TokenRow encode_pieces(const Tokenizer& tokenizer, std::span<const ChatPiece> pieces);

}  // namespace osprey
