#include "framework/data/special_ids.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "framework/files/file.h"
#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kMostBytes = int64_t{1} << 24;

/// An object out of a file that may be missing: then null.
class ConfigFile {
 public:
  ConfigFile(const fs::path& directory, const char* name) : path_(directory / name) {
    std::error_code ignored;
    if (fs::exists(path_, ignored)) json_ = read_json(path_, kMostBytes, /*most_depth=*/64);
    require(json_.is_null() || json_.is_object(), path_.string(), "is not a JSON object; restore the file");
  }

  bool exists() const { return !json_.is_null(); }
  const json& operator[](const char* key) const {
    static const json missing;
    const auto found = json_.find(key);
    return exists() && found != json_.end() ? *found : missing;
  }
  bool has(const char* key) const { return exists() && json_.contains(key); }

  /// "bos_token": "<s>", {"content": "<s>", ...} or null.
  std::optional<int32_t> word(const char* key, const VocabularyView& vocabulary) const {
    const json& value = (*this)[key];
    if (value.is_null()) return {};
    const json* text = &value;
    if (value.is_object()) text = value.contains("content") ? &value["content"] : &json_;
    require(text->is_string(), path_.string(), "`{}` is neither text nor an object with `content`", key);
    const auto token = vocabulary.find(text->get<std::string>());
    require(token.has_value(), path_.string(), "`{}` is '{}', which the tokenizer does not have", key,
            shown(text->get<std::string>()));
    return token;
  }

  /// "eos_token_id": 2, [2, 3] or null.
  std::vector<int32_t> numbers(const char* key, const VocabularyView& vocabulary) const {
    std::vector<int32_t> tokens;
    const json& value = (*this)[key];
    for (const json& one : value.is_array()  ? value
                           : value.is_null() ? json::array()
                                             : json::array({value})) {
      require(one.is_number_integer() && one >= 0 && one < vocabulary.size, path_.string(),
              "`{}` is {}, expected a token of the tokenizer, which has {}", key, shown(one.dump()),
              vocabulary.size);
      tokens.push_back(one.get<int32_t>());
    }
    return tokens;
  }

  std::optional<bool> flag(const char* key) const {
    const json& value = (*this)[key];
    if (value.is_null()) return {};
    require(value.is_boolean(), path_.string(), "`{}` is neither true nor false", key);
    return value.get<bool>();
  }

 private:
  fs::path path_;
  json json_;
};

}  // namespace

TokenizerFiles read_tokenizer_files(const fs::path& directory) {
  TokenizerFiles files;
  std::error_code ignored;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt"})
    if (fs::is_regular_file(directory / name, ignored))
      files[name] = read_file(directory / name, int64_t{1} << 28);
  return files;
}

bool says_add_bos(const TokenizerFiles& files) {
  const auto file = files.find("tokenizer_config.json");
  if (file == files.end()) return false;
  const json config = parse_json("tokenizer_config.json", file->second, /*most_depth=*/64);
  return config.is_object() && config.contains("add_bos_token") && config["add_bos_token"] == true;
}

SpecialIds read_special_ids(const fs::path& directory, const VocabularyView& vocabulary) {
  const ConfigFile words(directory, "tokenizer_config.json"), map(directory, "special_tokens_map.json"),
      generation(directory, "generation_config.json"), model(directory, "config.json");
  const auto find = [&](const char* word, const char* number) -> std::optional<int32_t> {
    // null in tokenizer_config.json says that there is none, whatever stands in the model's config.
    if (words.has(word)) return words.word(word, vocabulary);
    if (map.has(word)) return map.word(word, vocabulary);
    for (const ConfigFile* file : {&generation, &model})
      if (const auto tokens = file->numbers(number, vocabulary); !tokens.empty()) return tokens.front();
    return {};
  };
  SpecialIds ids{.bos = find("bos_token", "bos_token_id")};
  const auto eos = find("eos_token", "eos_token_id");
  require(eos.has_value(), directory.string(),
          "no file names the token that ends a text; give `eos_token` in tokenizer_config.json");
  ids.eos = *eos;
  if (const auto adds = words.flag("add_bos_token")) {
    ids.adds_bos = *adds && ids.bos;
  } else if (vocabulary.first) {
    ids.adds_bos = true;
    ids.bos = vocabulary.first;
  }
  ids.stops = {ids.eos};
  for (const int32_t stop : (generation.exists() ? generation : model).numbers("eos_token_id", vocabulary))
    if (std::find(ids.stops.begin(), ids.stops.end(), stop) == ids.stops.end()) ids.stops.push_back(stop);
  return ids;
}

}  // namespace osprey
