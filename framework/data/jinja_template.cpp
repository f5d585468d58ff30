#include "framework/data/jinja_template.h"

#include <algorithm>

#include "framework/data/jinja/render.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

using jinja::Text;
using Role = Message::Role;

/// A special token in rendered text.
struct Special {
  size_t begin, end;
  int32_t token;
};

class JinjaTemplate final : public ChatTemplate {
 public:
  JinjaTemplate(const std::string& source, const std::string& name, const Tokenizer& tokenizer)
      : name_(name), source_(source), block_(jinja::parse(source, name)), tokenizer_(tokenizer) {
    const Conversation probe = {{.role = Role::user, .content = "u"},
                                {.role = Role::assistant, .content = "a"}};
    for (const ChatPiece& piece : render(probe, Ask::nothing))
      if (piece.train && piece.token) end_ = *piece.token;
  }

  std::string name() const override { return name_; }
  std::string source() const override { return source_; }

  std::vector<ChatPiece> render(std::span<const Message> conversation, Ask ask) const override {
    const Text text = written(conversation, ask);
    const std::vector<Special> specials = specials_of(text);
    std::vector<uint8_t> trained(text.size(), 0);
    for (size_t m = 0; m < conversation.size(); ++m)
      if (conversation[m].role == Role::assistant && conversation[m].train)
        mark(conversation, m, text, specials, trained);
    std::vector<ChatPiece> pieces;
    size_t at = 0;
    for (const Special& s : specials) {
      add_text(text, trained, at, s.begin, pieces);
      pieces.push_back({text.bytes.substr(s.begin, s.end - s.begin), s.token, trained[s.begin] != 0});
      at = s.end;
    }
    add_text(text, trained, at, text.size(), pieces);
    return pieces;
  }

  std::vector<int32_t> stop_ids() const override {
    std::vector<int32_t> ids = tokenizer_.stop_ids();
    if (std::find(ids.begin(), ids.end(), end_) == ids.end()) ids.push_back(end_);
    return ids;
  }

 private:
  Text written(std::span<const Message> conversation, Ask ask) const {
    require(conversation.size() < Text::of_data, name_, "a conversation of {} messages is too long",
            conversation.size());
    jinja::List messages;
    for (size_t m = 0; m < conversation.size(); ++m) {
      const Message& message = conversation[m];
      const std::string content =
          message.input.empty() ? message.content : message.content + "\n" + message.input;
      messages.push_back(jinja::make_dict({{"role", Text(osprey::name(message.role))},
                                           {"content", Text(content, static_cast<char16_t>(m + 1))}}));
    }
    jinja::Dict variables = {{"messages", jinja::make_list(std::move(messages))},
                             {"add_generation_prompt", ask == Ask::answer},
                             {"tools", jinja::None{}}};
    const auto special = [&](const char* variable, std::optional<int32_t> token) {
      if (token)
        if (const auto text = tokenizer_.special_text(*token)) variables.emplace_back(variable, Text(*text));
    };
    special("bos_token", tokenizer_.bos_id());
    special("eos_token", tokenizer_.eos_id());
    return jinja::render(block_, variables, name_);
  }

  /// Those that the template wrote: stretches of its own text are encoded with special tokens, which then
  /// stand in them one after the other.
  std::vector<Special> specials_of(const Text& text) const {
    std::vector<Special> found;
    for (size_t begin = 0; begin < text.size();) {
      const auto own = [&](size_t i) { return text.origin[i] == Text::of_template; };
      size_t end = begin;
      while (end < text.size() && own(end) == own(begin)) ++end;
      if (own(begin)) {
        std::vector<int32_t> tokens;
        const std::string part = text.bytes.substr(begin, end - begin);
        tokenizer_.encode_with_specials(part, tokens);
        size_t from = 0;
        for (const int32_t token : tokens)
          if (const auto name = tokenizer_.special_text(token); name && !name->empty()) {
            const size_t at = part.find(*name, from);
            require(at != std::string::npos, name_,
                    "the tokenizer finds {} where the template does not write it", *name);
            found.push_back({begin + at, begin + at + name->size(), token});
            from = at + name->size();
          }
      }
      begin = end;
    }
    return found;
  }

  /// Marks the answer of message `m`, and the special token that ends it.
  void mark(std::span<const Message> conversation, size_t m, const Text& text,
            const std::vector<Special>& specials, std::vector<uint8_t>& trained) const {
    const auto origin = static_cast<char16_t>(m + 1);
    const size_t first = text.origin.find(origin), last = text.origin.rfind(origin);
    if (first == std::u16string::npos) return;  // the template leaves this turn out
    // From where the model goes on when it is asked: white space before an answer is its own to write.
    const Text asked = written(conversation.first(m), Ask::answer);
    const bool prefix = asked.size() <= first && text.bytes.compare(0, asked.size(), asked.bytes) == 0;
    const auto end =
        std::find_if(specials.begin(), specials.end(), [&](const Special& s) { return s.begin > last; });
    require(end != specials.end() &&
                std::all_of(text.bytes.begin() + static_cast<int64_t>(last) + 1,
                            text.bytes.begin() + static_cast<int64_t>(end->begin), jinja::is_space),
            name_, "puts no special token behind an answer, so a model could not learn to stop");
    std::fill(trained.begin() + static_cast<int64_t>(prefix ? asked.size() : first),
              trained.begin() + static_cast<int64_t>(end->end), 1);
  }

  static void add_text(const Text& text, const std::vector<uint8_t>& trained, size_t begin, size_t end,
                       std::vector<ChatPiece>& pieces) {
    while (begin < end) {
      size_t stop = begin;
      while (stop < end && trained[stop] == trained[begin]) ++stop;
      pieces.push_back({text.bytes.substr(begin, stop - begin), {}, trained[begin] != 0});
      begin = stop;
    }
  }

  std::string name_, source_;
  jinja::Block block_;
  const Tokenizer& tokenizer_;
  int32_t end_ = 0;
};

}  // namespace

std::unique_ptr<ChatTemplate> make_jinja_template(const std::string& source, const std::string& name,
                                                  const Tokenizer& tokenizer) {
  return std::make_unique<JinjaTemplate>(source, name, tokenizer);
}

}  // namespace osprey
