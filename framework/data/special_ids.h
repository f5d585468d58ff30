#pragma once
// Which tokens begin and end texts, and the files in which a Hugging Face directory says so.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

struct SpecialIds {
  std::optional<int32_t> bos;
  bool adds_bos = false;  // texts begin with it
  int32_t eos = 0;
  std::vector<int32_t> stops;  // eos first
};

/// What belongs to a tokenizer and is carried along with it: name to content.
using TokenizerFiles = std::map<std::string, std::string>;

/// Reads those files of a directory that stand beside the vocabulary: tokenizer_config.json,
/// chat_template.jinja, ...
TokenizerFiles read_tokenizer_files(const std::filesystem::path& directory);

/// Does tokenizer_config.json say that texts begin with the token for that? Errors: it is damaged.
bool says_add_bos(const TokenizerFiles& files);

/// What a tokenizer knows of its own vocabulary.
struct VocabularyView {
  std::function<std::optional<int32_t>(const std::string&)> find;
  int64_t size = 0;
  std::optional<int32_t> first;  // what its post-processor puts before a text
};

/// bos and eos by the words of tokenizer_config.json or special_tokens_map.json, else by the numbers of
/// generation_config.json or config.json; stops are all ends that generation_config.json names, and eos.
/// Errors: no eos; a token that is not in the vocabulary.
SpecialIds read_special_ids(const std::filesystem::path& directory, const VocabularyView& vocabulary);

}  // namespace osprey
