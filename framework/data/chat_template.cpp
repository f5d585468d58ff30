#include "framework/data/chat_template.h"

#include <algorithm>
#include <functional>

#include "kernels/core/check.h"

namespace osprey {
namespace {

using Role = Message::Role;
using Ask = ChatTemplate::Ask;

std::string trimmed(const std::string& text) {
  constexpr const char* space = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(space);
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(space) + 1 - begin);
}

/// A user's turn where a template has no place of its own for `input`.
std::string joined(const Message& m) { return m.input.empty() ? m.content : m.content + "\n" + m.input; }

/// Collects pieces by name of the special token.
class Writer {
 public:
  explicit Writer(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  Writer& text(std::string text, bool train = false) {
    if (!text.empty()) pieces_.push_back({std::move(text), {}, train});
    return *this;
  }
  Writer& special(const std::string& text, bool train = false) {
    pieces_.push_back({text, *tokenizer_.special_id(text), train});
    return *this;
  }
  Writer& eos(bool train) { return id(tokenizer_.eos_id(), "</s>", train); }
  /// The begin of text, where the tokenizer has one.
  Writer& bos() { return tokenizer_.bos_id() ? id(*tokenizer_.bos_id(), "<s>", false) : *this; }
  /// The same, where texts for this model begin with it.
  Writer& usual_bos() { return tokenizer_.adds_bos() ? bos() : *this; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  std::vector<ChatPiece> take() { return std::move(pieces_); }

 private:
  Writer& id(int32_t token, const char* otherwise, bool train) {
    pieces_.push_back({tokenizer_.special_text(token).value_or(otherwise), token, train});
    return *this;
  }
  const Tokenizer& tokenizer_;
  std::vector<ChatPiece> pieces_;
};

/// A conversation as the templates below want it: the system's text, then turns in which user and assistant
/// alternate. The last turn may wait for its answer.
struct Turns {
  struct Pair {
    const Message* user;
    const Message* assistant;  // null: asked
    bool train() const { return assistant->train; }
  };
  std::optional<std::string> system;
  std::vector<Pair> pairs;

  Turns(const std::string& name, std::span<const Message> messages, Ask ask) {
    if (!messages.empty() && messages.front().role == Role::system) {
      system = messages.front().content;
      messages = messages.subspan(1);
    }
    for (size_t i = 0; i < messages.size(); ++i) {
      const Role expected = i % 2 == 0 ? Role::user : Role::assistant;
      require(messages[i].role == expected, "template",
              "{} writes a user's turn and an answer by turns, but message {} is of {} where {} was expected",
              name, i + 1, osprey::name(messages[i].role), osprey::name(expected));
      if (i % 2 == 0)
        pairs.push_back({&messages[i], nullptr});
      else
        pairs.back().assistant = &messages[i];
    }
    const bool waits = !pairs.empty() && pairs.back().assistant == nullptr;
    require(!pairs.empty() && waits == (ask == Ask::answer), "template", "{} {}", name,
            ask == Ask::answer ? "can only be asked for an answer to a user's turn"
                               : "needs an answer to every user's turn");
  }
  /// The first user's turn with the system's text before it, as templates write it that have no place for
  /// one.
  std::string user_with_system(size_t i, const std::string& between) const {
    const std::string user = joined(*pairs[i].user);
    return i == 0 && system ? *system + between + user : user;
  }
};

void chatml(Writer& w, const Turns& turns) {
  w.usual_bos();
  const auto open = [&](const char* role) -> Writer& {
    return w.special("<|im_start|>").text(std::string(role) + "\n");
  };
  if (turns.system) open("system").text(*turns.system).special("<|im_end|>").text("\n");
  for (const Turns::Pair& t : turns.pairs) {
    open("user").text(joined(*t.user)).special("<|im_end|>").text("\n");
    open("assistant");
    if (t.assistant) w.text(t.assistant->content, t.train()).special("<|im_end|>", t.train()).text("\n");
  }
}

void llama3(Writer& w, const Turns& turns) {
  w.special("<|begin_of_text|>");
  const auto open = [&](const char* role) -> Writer& {
    return w.special("<|start_header_id|>").text(role).special("<|end_header_id|>").text("\n\n");
  };
  if (turns.system) open("system").text(trimmed(*turns.system)).special("<|eot_id|>");
  for (const Turns::Pair& t : turns.pairs) {
    open("user").text(trimmed(joined(*t.user))).special("<|eot_id|>");
    open("assistant");
    if (t.assistant) w.text(trimmed(t.assistant->content), t.train()).special("<|eot_id|>", t.train());
  }
}

void llama2(Writer& w, const Turns& turns) {
  for (size_t i = 0; i < turns.pairs.size(); ++i) {
    const Turns::Pair& t = turns.pairs[i];
    const std::string system =
        i == 0 && turns.system ? "<<SYS>>\n" + *turns.system + "\n<</SYS>>\n\n" : std::string();
    w.bos().text("[INST] " + trimmed(system + joined(*t.user)) + " [/INST]");
    if (t.assistant) w.text(" " + trimmed(t.assistant->content) + " ", t.train()).eos(t.train());
  }
}

/// From version 3 of Mistral's tokenizer on, [INST] and [/INST] are special tokens.
void mistral(Writer& w, const Turns& turns) {
  const bool special = w.tokenizer().special_id("[INST]") && w.tokenizer().special_id("[/INST]");
  const auto mark = [&](const char* text) -> Writer& { return special ? w.special(text) : w.text(text); };
  w.bos();
  for (size_t i = 0; i < turns.pairs.size(); ++i) {
    const Turns::Pair& t = turns.pairs[i];
    mark("[INST]").text(" " + turns.user_with_system(i, "\n\n"));
    mark("[/INST]");
    if (t.assistant) w.text(" " + t.assistant->content, t.train()).eos(t.train());
  }
}

void gemma(Writer& w, const Turns& turns) {
  w.bos();
  for (size_t i = 0; i < turns.pairs.size(); ++i) {
    const Turns::Pair& t = turns.pairs[i];
    w.special("<start_of_turn>").text("user\n" + trimmed(turns.user_with_system(i, "\n\n")));
    w.special("<end_of_turn>").text("\n").special("<start_of_turn>").text("model\n");
    if (t.assistant)
      w.text(trimmed(t.assistant->content), t.train()).special("<end_of_turn>", t.train()).text("\n");
  }
}

void alpaca(Writer& w, const Turns& turns) {
  w.usual_bos();
  for (size_t i = 0; i < turns.pairs.size(); ++i) {
    const Turns::Pair& t = turns.pairs[i];
    const bool input = !t.user->input.empty();
    const std::string task =
        input
            ? "Below is an instruction that describes a task, paired with an input that provides further "
              "context. Write a response that appropriately completes the request."
            : "Below is an instruction that describes a task. Write a response that appropriately completes "
              "the request.";
    if (i == 0) w.text(turns.system.value_or(task) + "\n\n");
    w.text("### Instruction:\n" + t.user->content + "\n\n");
    if (input) w.text("### Input:\n" + t.user->input + "\n\n");
    w.text("### Response:\n");
    if (t.assistant) w.text(t.assistant->content, t.train()).eos(t.train());
  }
}

void vicuna(Writer& w, const Turns& turns) {
  w.usual_bos().text(turns.system.value_or("A chat between a curious user and an artificial intelligence "
                                           "assistant. The assistant gives helpful, detailed, and polite "
                                           "answers to the user's questions.") +
                     " ");
  for (const Turns::Pair& t : turns.pairs) {
    w.text("USER: " + joined(*t.user) + " ASSISTANT:");
    if (t.assistant) w.text(" " + t.assistant->content, t.train()).eos(t.train());
  }
}

void none(Writer& w, const Turns& turns) {
  w.usual_bos();
  for (size_t i = 0; i < turns.pairs.size(); ++i) {
    const Turns::Pair& t = turns.pairs[i];
    w.text(turns.user_with_system(i, ""));
    if (t.assistant) w.text(t.assistant->content, t.train()).eos(t.train());
  }
}

struct Named {
  const char* name;
  void (*write)(Writer&, const Turns&);
  std::vector<const char*> specials;  // the tokenizer must have them; the last one ends an answer
};
const std::vector<Named>& named() {
  static const std::vector<Named> all = {
      {"chatml", chatml, {"<|im_start|>", "<|im_end|>"}},
      {"llama3", llama3, {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}},
      {"llama2", llama2, {}},
      {"mistral", mistral, {}},
      {"gemma", gemma, {"<start_of_turn>", "<end_of_turn>"}},
      {"alpaca", alpaca, {}},
      {"vicuna", vicuna, {}},
      {"none", none, {}}};
  return all;
}

class NamedTemplate final : public ChatTemplate {
 public:
  NamedTemplate(const Named& named, const Tokenizer& tokenizer) : named_(named), tokenizer_(tokenizer) {
    for (const char* special : named.specials)
      require(
          tokenizer.special_id(special).has_value(), "template",
          "{} is written with the special token {}, which the tokenizer ({}) does not have; take a template "
          "without special tokens, such as alpaca or vicuna",
          named.name, special, tokenizer.fingerprint());
  }
  std::string name() const override { return named_.name; }
  std::vector<ChatPiece> render(std::span<const Message> conversation, Ask ask) const override {
    Writer writer(tokenizer_);
    named_.write(writer, Turns(named_.name, conversation, ask));
    return writer.take();
  }
  std::vector<int32_t> stop_ids() const override {
    std::vector<int32_t> ids = tokenizer_.stop_ids();
    if (named_.specials.empty()) return ids;
    const int32_t end = *tokenizer_.special_id(named_.specials.back());
    if (std::find(ids.begin(), ids.end(), end) == ids.end()) ids.push_back(end);
    return ids;
  }

 private:
  const Named& named_;
  const Tokenizer& tokenizer_;
};

}  // namespace

std::vector<std::string> template_names() {
  std::vector<std::string> names;
  for (const Named& n : named()) names.emplace_back(n.name);
  return names;
}

std::unique_ptr<ChatTemplate> make_named_template(const std::string& name, const Tokenizer& tokenizer) {
  for (const Named& n : named())
    if (name == n.name) return std::make_unique<NamedTemplate>(n, tokenizer);
  fail("template", "there is no template {}; the names are {}", name, fmt::join(template_names(), ", "));
}

TokenRow encode_pieces(const Tokenizer& tokenizer, std::span<const ChatPiece> pieces) {
  TokenRow row;
  std::string text;
  const auto mark = [&](bool train) { row.trained.resize(row.tokens.size(), train); };
  const auto flush = [&](bool train) {
    const bool begins = row.tokens.empty() || row.tokens.back() == tokenizer.bos_id();
    if (begins)
      tokenizer.encode(text, row.tokens);
    else
      tokenizer.encode_continuation(text, row.tokens);
    text.clear();
    mark(train);
  };
  for (size_t i = 0; i < pieces.size(); ++i) {
    const ChatPiece& p = pieces[i];
    if (p.token) {
      row.tokens.push_back(*p.token);
      mark(p.train);
      continue;
    }
    text += p.text;
    const bool ends = i + 1 == pieces.size() || pieces[i + 1].token || pieces[i + 1].train != p.train;
    if (ends && !text.empty()) flush(p.train);
  }
  if (!row.trained.empty()) row.trained.front() = 0;
  return row;
}

}  // namespace osprey
