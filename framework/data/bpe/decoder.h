#pragma once
// From what tokens spell to text, and what the post-processor of tokenizer.json puts before texts.

#include <optional>
#include <string>
#include <string_view>

#include "framework/data/bpe/json_node.h"

namespace osprey::bpe {

class Decoder {
 public:
  /// The `decoder` of a tokenizer.json. Errors: one that is not known, by its name.
  explicit Decoder(const JsonNode& json);
  /// Appends what a token gives. `first`: it begins the text.
  void append(std::string_view spelled, bool first, std::string& text) const;

 private:
  void add(const JsonNode& json);
  std::string space_;           // stands for a space; empty: none does
  bool byte_fallback_ = false;  // <0x0A> is a byte
  bool strip_ = false;          // a text loses one space at its beginning
};

/// The text of the token that a `post_processor` puts before a text, if any. Errors: one that is not known.
std::optional<std::string> first_token(const JsonNode& json);

}  // namespace osprey::bpe
