#include "framework/data/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "framework/data/tokenizer_files.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr const char* kCure = "give the tokenizer directory that osprey prepare wrote, or the word bytes";

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
};

TokenizerLabel read_label(const std::string& path) {
  const auto json = read_json(path, kMaxLabelBytes, /*most_depth=*/4);
  const auto word = [&](const char* key) -> std::string {
    require(json.is_object() && json.contains(key) && json[key].is_string(), "tokenizer",
            "{} is not a tokenizer description (no word `{}`); {}", path, key, kCure);
    return json[key].get<std::string>();
  };
  return {word("kind"), word("fingerprint")};
}

}  // namespace

void save_tokenizer_label(const Tokenizer& tokenizer, const std::string& directory) {
  nlohmann::ordered_json json = {{"kind", tokenizer.kind()},
                                 {"fingerprint", tokenizer.fingerprint()},
                                 {"vocab_size", tokenizer.vocab_size()},
                                 {"eos_id", tokenizer.eos_id()}};
  if (tokenizer.bos_id()) json["bos_id"] = *tokenizer.bos_id();
  write_file(directory + "/osprey_tokenizer.json", json.dump(2) + "\n");
}

std::unique_ptr<Tokenizer> make_bytes_tokenizer() { return std::make_unique<BytesTokenizer>(); }

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& where) {
  namespace fs = std::filesystem;
  if (where == "bytes") return make_bytes_tokenizer();
  std::error_code ignored;
  require(!where.empty(), "tokenizer", "no tokenizer is named; {}", kCure);
  require(fs::exists(where, ignored), "tokenizer", "{} does not exist; {}", where, kCure);
  if (fs::is_regular_file(where, ignored))
    return make_sentencepiece_tokenizer(read_file(where, kMaxModelBytes), where);

  const std::string label_path = where + "/osprey_tokenizer.json", model_path = where + "/tokenizer.model";
  // A directory from elsewhere has only the model, and then nothing to compare it with.
  const bool labelled = fs::exists(label_path, ignored);
  require(labelled || fs::exists(model_path, ignored), "tokenizer",
          "{} holds neither osprey_tokenizer.json nor tokenizer.model; {}", where, kCure);
  if (!labelled) return make_sentencepiece_tokenizer(read_file(model_path, kMaxModelBytes), model_path);

  const TokenizerLabel label = read_label(label_path);
  require(label.kind == "bytes" || label.kind == "sentencepiece", "tokenizer",
          "{} names kind `{}`, expected bytes or sentencepiece", label_path, label.kind);
  auto tokenizer = label.kind == "bytes"
                       ? make_bytes_tokenizer()
                       : make_sentencepiece_tokenizer(read_file(model_path, kMaxModelBytes), model_path);
  require(tokenizer->fingerprint() == label.fingerprint, "tokenizer",
          "{} has fingerprint {}, but {} says {}: the model was replaced or damaged; restore it", model_path,
          tokenizer->fingerprint(), label_path, label.fingerprint);
  return tokenizer;
}

}  // namespace osprey
