#include "framework/data/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/tokenizer_files.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr const char* kCure =
    "give the tokenizer directory that osprey prepare wrote, a Hugging Face directory, or the word bytes";

constexpr int64_t kMaxLabelBytes = 1 << 16, kMaxModelBytes = int64_t{1} << 28;

class BytesTokenizer final : public Tokenizer {
 public:
  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    tokens.reserve(tokens.size() + text.size());
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t token : tokens) {
      require(token >= 0 && token < vocab_size(), "tokenizer", "token {} is outside the vocabulary of {}",
              token, vocab_size());
      if (token < 256) text.push_back(static_cast<char>(token));
    }
    return text;
  }

  std::string kind() const override { return "bytes"; }
  int64_t vocab_size() const override { return 257; }
  int32_t eos_id() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return {}; }
  std::string fingerprint() const override { return "bytes"; }
  void save(const std::string& directory) const override { save_tokenizer_label(*this, directory); }
};

struct TokenizerLabel {
  std::string kind, fingerprint;
  SpecialIds ids;  // of kind bpe
};

TokenizerLabel read_label(const std::string& path) {
  const auto json = read_json(path, kMaxLabelBytes, /*most_depth=*/4);
  const auto member = [&](const char* key, const char* type, auto is) -> const nlohmann::json& {
    require(json.is_object() && json.contains(key) && (json[key].*is)(), "tokenizer",
            "{} is not a tokenizer description (no {} `{}`); {}", path, type, key, kCure);
    return json[key];
  };
  const auto word = [&](const char* key) {
    return member(key, "word", &nlohmann::json::is_string).template get<std::string>();
  };
  TokenizerLabel label{word("kind"), word("fingerprint"), {}};
  if (label.kind != "bpe") return label;
  const auto token = [&](const nlohmann::json& value) {
    require(value.is_number_integer() && value >= 0 && value <= INT32_MAX, "tokenizer",
            "{} has the token {}, which is no token number; {}", path, value.dump(), kCure);
    return value.get<int32_t>();
  };
  if (json.contains("bos_id")) label.ids.bos = token(json["bos_id"]);
  label.ids.adds_bos = member("adds_bos", "flag", &nlohmann::json::is_boolean).get<bool>();
  label.ids.eos = token(member("eos_id", "number", &nlohmann::json::is_number_integer));
  for (const auto& stop : member("stop_ids", "list", &nlohmann::json::is_array))
    label.ids.stops.push_back(token(stop));
  return label;
}

std::unique_ptr<Tokenizer> load_sentencepiece(const std::string& path, const std::string& directory) {
  return make_sentencepiece_tokenizer(read_file(path, kMaxModelBytes), path, read_tokenizer_files(directory));
}

/// A tokenizer.json and what stands beside it.
std::unique_ptr<Tokenizer> load_bpe(const std::filesystem::path& path, std::optional<SpecialIds> ids) {
  const std::filesystem::path directory = path.parent_path().empty() ? "." : path.parent_path();
  return make_bpe_tokenizer(read_file(path, kMaxModelBytes), {.path = path.string(),
                                                              .directory = directory,
                                                              .ids = std::move(ids),
                                                              .beside = read_tokenizer_files(directory)});
}

}  // namespace

void save_tokenizer_label(const Tokenizer& tokenizer, const std::string& directory) {
  nlohmann::ordered_json json = {{"kind", tokenizer.kind()},
                                 {"fingerprint", tokenizer.fingerprint()},
                                 {"vocab_size", tokenizer.vocab_size()},
                                 {"eos_id", tokenizer.eos_id()}};
  if (tokenizer.bos_id()) json["bos_id"] = *tokenizer.bos_id();
  if (tokenizer.kind() == "bpe") {
    json["adds_bos"] = tokenizer.adds_bos();
    json["stop_ids"] = tokenizer.stop_ids();
  }
  write_file(directory + "/osprey_tokenizer.json", json.dump(2) + "\n");
}

std::unique_ptr<Tokenizer> make_bytes_tokenizer() { return std::make_unique<BytesTokenizer>(); }

bool has_tokenizer(const std::string& where) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (where == "bytes" || fs::is_regular_file(where, ignored)) return true;
  for (const char* name : {"osprey_tokenizer.json", "tokenizer.json", "tokenizer.model"})
    if (fs::exists(fs::path(where) / name, ignored)) return true;
  return false;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& where) {
  namespace fs = std::filesystem;
  if (where == "bytes") return make_bytes_tokenizer();
  std::error_code ignored;
  require(!where.empty(), "tokenizer", "no tokenizer is named; {}", kCure);
  require(fs::exists(where, ignored), "tokenizer", "{} does not exist; {}", where, kCure);
  if (fs::is_regular_file(where, ignored))
    return where.ends_with(".json") ? load_bpe(where, {})
                                    : make_sentencepiece_tokenizer(read_file(where, kMaxModelBytes), where);

  const std::string label_path = where + "/osprey_tokenizer.json", json_path = where + "/tokenizer.json",
                    model_path = where + "/tokenizer.model";
  // A directory from elsewhere has no label, and then nothing to compare it with.
  if (!fs::exists(label_path, ignored)) {
    if (fs::exists(json_path, ignored)) return load_bpe(json_path, {});
    require(fs::exists(model_path, ignored), "tokenizer",
            "{} holds neither osprey_tokenizer.json, tokenizer.json nor tokenizer.model; {}", where, kCure);
    return load_sentencepiece(model_path, where);
  }

  const TokenizerLabel label = read_label(label_path);
  require(label.kind == "bytes" || label.kind == "sentencepiece" || label.kind == "bpe", "tokenizer",
          "{} names kind `{}`, expected bytes, sentencepiece or bpe", label_path, label.kind);
  auto tokenizer = label.kind == "bytes" ? make_bytes_tokenizer()
                   : label.kind == "bpe" ? load_bpe(json_path, label.ids)
                                         : load_sentencepiece(model_path, where);
  require(tokenizer->fingerprint() == label.fingerprint, "tokenizer",
          "{} has fingerprint {}, but {} says {}: the model was replaced or damaged; restore it",
          label.kind == "bpe" ? json_path : model_path, tokenizer->fingerprint(), label_path,
          label.fingerprint);
  return tokenizer;
}

}  // namespace osprey
