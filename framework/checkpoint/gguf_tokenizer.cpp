#include "framework/checkpoint/gguf_tokenizer.h"

#include <bit>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t most_file_bytes = int64_t{1} << 28;
constexpr int most_depth = 24;

/// llama.cpp's numbers, which are sentencepiece's too.
enum TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5 };

struct Vocabulary {
  std::string where;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;

  void resize(size_t count) {
    for (size_t i = tokens.size(); i < count; ++i) {
      tokens.push_back(fmt::format("[PAD{}]", i));
      scores.push_back(-1000.0f);
      types.push_back(unused);
    }
  }
  void set(int64_t id, const std::string& token, TokenType type) {
    tokens[static_cast<size_t>(id)] = token;
    types[static_cast<size_t>(id)] = type;
  }
};

// ---- sentencepiece's ModelProto ---------------------------------------------------------------------------

/// Protocol buffers, as far as ModelProto needs them. Errors: fields that do not end inside the text.
class Fields {
 public:
  Fields(std::string_view text, const std::string& where) : rest_(text), where_(where) {}
  /// Goes on to the next field; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    number = tag >> 3;
    switch (tag & 7) {
      case 0:
        value = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        bytes = take(varint());
        break;
      case 5:
        bytes = take(4);
        break;
      default:
        fail(where_, "is damaged: no sentencepiece model has a field of wire type {}", tag & 7);
    }
    return true;
  }
  uint64_t number = 0, value = 0;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      result |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return result;
    }
    fail(where_, "is damaged: a number has more than ten bytes");
  }
  std::string_view take(uint64_t count) {
    require(count <= rest_.size(), where_, "is damaged or truncated: it is no sentencepiece model");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  std::string_view rest_;
  const std::string& where_;
};

struct SentencepieceModel {
  Vocabulary vocabulary;
  uint64_t kind = 1;  // unigram
  bool dummy_prefix = true, remove_spaces = true, normalises = false;
};

void read_piece(Fields piece, Vocabulary& v) {
  std::string text;
  float score = 0;
  int32_t type = normal;
  while (piece.next()) {
    if (piece.number == 1) text = piece.bytes;
    if (piece.number == 2 && piece.bytes.size() == 4) std::memcpy(&score, piece.bytes.data(), 4);
    if (piece.number == 3) type = static_cast<int32_t>(piece.value);
  }
  require(type >= normal && type <= 6, v.where, "piece {} has the unknown type {}", v.tokens.size(), type);
  v.tokens.push_back(text);
  v.scores.push_back(score);
  v.types.push_back(type);
}

SentencepieceModel read_sentencepiece(const fs::path& path) {
  const std::string text = read_file(path, most_file_bytes);
  SentencepieceModel m;
  m.vocabulary.where = path.string();
  for (Fields f(text, m.vocabulary.where); f.next();) {
    Fields inner(f.bytes, m.vocabulary.where);
    if (f.number == 1) read_piece(inner, m.vocabulary);
    while (f.number == 2 && inner.next())
      if (inner.number == 3) m.kind = inner.value;
    while (f.number == 3 && inner.next()) {
      if (inner.number == 2) m.normalises = !inner.bytes.empty();
      if (inner.number == 3) m.dummy_prefix = inner.value != 0;
      if (inner.number == 4) m.remove_spaces = inner.value != 0;
    }
  }
  require(!m.vocabulary.tokens.empty(), m.vocabulary.where,
          "is damaged: a sentencepiece model without pieces");
  constexpr uint64_t bpe = 2;
  require(m.kind == bpe, m.vocabulary.where,
          "is no BPE model; llama.cpp computes other kinds of sentencepiece in another way than its "
          "llama tokenizer");
  require(!m.normalises, m.vocabulary.where,
          "normalises text by a table, which llama.cpp's llama tokenizer does not; its tokens would differ");
  return m;
}

// ---- tokenizer.json ---------------------------------------------------------------------------------------

/// The file's object, or null where there is no such file.
json object_of(const fs::path& path) {
  if (!fs::exists(path)) return nullptr;
  json tree = read_json(path, most_file_bytes, most_depth);
  require(tree.is_object(), path.string(), "is no object");
  return tree;
}

/// holder[key] of this type, or null.
const json* member(const json& holder, const char* key, json::value_t type) {
  if (!holder.is_object()) return nullptr;
  const auto it = holder.find(key);
  return it != holder.end() && it->type() == type ? &*it : nullptr;
}

std::string text_of(const json& holder, const char* key) {
  const json* v = member(holder, key, json::value_t::string);
  return v ? v->get<std::string>() : "";
}

bool flag_of(const json& holder, const char* key, bool otherwise) {
  const json* v = member(holder, key, json::value_t::boolean);
  return v ? v->get<bool>() : otherwise;
}

/// llama.cpp's name of how text is cut into words before merging.
std::string pre_tokenizer(const std::string& where, const json& tree) {
  // Both cut digits, the one three at a time, the other one by one.
  const auto tiktoken = [](const char* digits) {
    return R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" + std::string(digits) +
           R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  };
  const json* pre = member(tree, "pre_tokenizer", json::value_t::object);
  require(pre, where, "has no pre_tokenizer, which byte-level BPE needs");
  const json* list = member(*pre, "pretokenizers", json::value_t::array);
  const std::vector<json> steps = list ? list->get<std::vector<json>>() : std::vector<json>{*pre};
  const bool bytes = !steps.empty() && text_of(steps.back(), "type") == "ByteLevel" &&
                     !flag_of(steps.back(), "add_prefix_space", true);
  const bool gpt2 = bytes && flag_of(steps.back(), "use_regex", true);
  if (steps.size() == 1 && gpt2) return "gpt-2";
  if (steps.size() == 2 && gpt2 && text_of(steps[0], "type") == "Digits" &&
      flag_of(steps[0], "individual_digits", false))
    return "smollm";
  if (steps.size() == 2 && bytes && !gpt2 && text_of(steps[0], "type") == "Split") {
    const json* pattern = member(steps[0], "pattern", json::value_t::object);
    const std::string regex = pattern ? text_of(*pattern, "Regex") : "";
    if (regex == tiktoken(R"(\p{N}{1,3})")) return "llama-bpe";
    if (regex == tiktoken(R"(\p{N})")) return "qwen2";
  }
  fail(where, "cuts text in a way that is none of llama.cpp's gpt-2, llama-bpe, qwen2 and smollm: {}",
       shown(pre->dump()));
}

/// Tokens beside the model's own, at their places. The vocabulary grows where they lie behind it.
void add_tokens(const json& tree, int64_t vocab_size, Vocabulary& v) {
  const json* added = member(tree, "added_tokens", json::value_t::array);
  if (!added) return;
  for (const json& token : *added) {
    const json* id = member(token, "id", json::value_t::number_unsigned);
    require(id && id->get<uint64_t>() < static_cast<uint64_t>(vocab_size), v.where,
            "the added token {} has no id below the model's {} rows", shown(token.dump()), vocab_size);
    v.resize(std::max(v.tokens.size(), static_cast<size_t>(id->get<uint64_t>()) + 1));
    v.set(id->get<int64_t>(), text_of(token, "content"),
          flag_of(token, "special", false) ? control : user_defined);
  }
}

std::vector<std::string> merges_of(const std::string& where, const json& model) {
  std::vector<std::string> merges;
  const json* list = member(model, "merges", json::value_t::array);
  require(list, where, "has no list model.merges");
  for (const json& merge : *list) {
    if (merge.is_string()) {
      merges.push_back(merge.get<std::string>());
      continue;
    }
    require(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), where,
            "a merge must be \"a b\" or [\"a\", \"b\"], found {}", shown(merge.dump()));
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return merges;
}

Vocabulary byte_level_vocabulary(const std::string& where, const json& tree, int64_t vocab_size) {
  Vocabulary v;
  v.where = where;
  const json* model = member(tree, "model", json::value_t::object);
  require(model && text_of(*model, "type") == "BPE" && !flag_of(*model, "byte_fallback", false), where,
          "is no byte-level BPE, and there is no tokenizer.model beside it");
  const json* vocab = member(*model, "vocab", json::value_t::object);
  require(vocab, where, "has no object model.vocab");
  std::map<int64_t, std::string> by_id;
  for (const auto& [token, id] : vocab->items()) {
    require(id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab_size), where,
            "the token '{}' has no id below the model's {} rows", shown(token), vocab_size);
    require(by_id.emplace(id.get<int64_t>(), token).second, where, "two tokens have the id {}",
            id.get<int64_t>());
  }
  v.resize(by_id.empty() ? 0 : static_cast<size_t>(by_id.rbegin()->first) + 1);
  for (const auto& [id, token] : by_id) v.set(id, token, normal);
  return v;
}

/// Does encoding begin with a special token?
bool adds_first_token(const json& processor) {
  if (const json* list = member(processor, "processors", json::value_t::array)) {
    for (const json& one : *list)
      if (adds_first_token(one)) return true;
    return false;
  }
  const json* single = member(processor, "single", json::value_t::array);
  return text_of(processor, "type") == "TemplateProcessing" && single && !single->empty() &&
         single->front().contains("SpecialToken");
}

void add_template(GgufKeys& keys, const fs::path& directory, const json& config) {
  std::string text = text_of(config, "chat_template");
  if (fs::exists(directory / "chat_template.jinja"))
    text = read_file(directory / "chat_template.jinja", int64_t{1} << 20);
  if (!text.empty()) keys.add("tokenizer.chat_template", text);
}

}  // namespace

void add_gguf_tokenizer(GgufKeys& keys, const fs::path& directory, int64_t vocab_size) {
  const json config = object_of(directory / "tokenizer_config.json"),
             tree = object_of(directory / "tokenizer.json");
  Vocabulary v;
  bool first_token = true;
  if (fs::exists(directory / "tokenizer.model")) {
    SentencepieceModel m = read_sentencepiece(directory / "tokenizer.model");
    v = std::move(m.vocabulary);
    keys.add("tokenizer.ggml.model", "llama");
    keys.add("tokenizer.ggml.pre", "default");
    keys.add("tokenizer.ggml.add_space_prefix", m.dummy_prefix);
    keys.add("tokenizer.ggml.remove_extra_whitespaces", m.remove_spaces);
    add_tokens(tree, vocab_size, v);
  } else {
    require(
        !tree.is_null(), "gguf",
        "{} has neither tokenizer.model nor tokenizer.json, and llama.cpp has no tokenizer of bytes alone",
        directory.string());
    const std::string where = (directory / "tokenizer.json").string();
    v = byte_level_vocabulary(where, tree, vocab_size);
    keys.add("tokenizer.ggml.model", "gpt2");
    keys.add("tokenizer.ggml.pre", pre_tokenizer(where, tree));
    keys.add("tokenizer.ggml.merges", merges_of(where, tree["model"]));
    add_tokens(tree, vocab_size, v);
    first_token = adds_first_token(tree.value("post_processor", json()));
  }
  require(static_cast<int64_t>(v.tokens.size()) <= vocab_size, v.where,
          "has {} tokens, the model has {} rows for them", v.tokens.size(), vocab_size);
  v.resize(static_cast<size_t>(vocab_size));
  keys.add("tokenizer.ggml.tokens", v.tokens);
  keys.add("tokenizer.ggml.scores", v.scores);
  keys.add("tokenizer.ggml.token_type", v.types);
  keys.add("tokenizer.ggml.add_bos_token", flag_of(config, "add_bos_token", first_token));
  add_template(keys, directory, config);
}

}  // namespace osprey
