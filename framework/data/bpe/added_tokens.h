#pragma once
// Tokens that stand beside the vocabulary, such as <|im_end|>, and where text holds them.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "framework/data/bpe/json_node.h"
#include "framework/data/bpe/normalizer.h"

namespace osprey::bpe {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;                 // control, rather than text that is kept in one token
  bool single_word = false;             // only where no letter or digit is beside it
  bool lstrip = false, rstrip = false;  // takes the white space beside it
  bool normalized = false;              // is looked for in normalised text
};

/// Errors: what is no added token, and two of the same text.
std::vector<AddedToken> read_added_tokens(const JsonNode& json);

/// Finds tokens in text: at each place the longest.
class AddedTokenFinder {
 public:
  /// Takes those tokens whose `normalized` is as given; their texts are normalised likewise.
  AddedTokenFinder(const std::vector<AddedToken>& tokens, bool normalized, const Normalizer& normalizer);

  enum class Specials { are_text, are_tokens };
  using Visit = std::function<void(std::string_view text, const AddedToken* token)>;
  /// Calls visit(text, nullptr) and visit(text of a token, token) from left to right, as tokenizers'
  /// AddedVocabulary does.
  void operator()(std::string_view text, Specials specials, const Visit& visit) const;

 private:
  struct Node {
    unsigned char byte = 0;
    int32_t child = -1, sibling = -1, token = -1;
  };
  void insert(std::string_view content, int32_t token);
  /// The longest token at text[at], and its bytes.
  std::pair<int32_t, size_t> longest(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  int32_t roots_[256];
};

}  // namespace osprey::bpe
