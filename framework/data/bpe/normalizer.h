#pragma once
// What tokenizer.json does to text before it is split: NFC, Prepend, Replace, and sequences of them.

#include <string>
#include <string_view>
#include <vector>

#include "framework/data/bpe/json_node.h"

namespace osprey::bpe {

class Normalizer {
 public:
  /// The `normalizer` of a tokenizer.json, which may be null. Errors: one that is not known, by its name.
  explicit Normalizer(const JsonNode& json);

  /// The normalised text: `text` itself, or a view of `buffer`. `text` must be valid UTF-8.
  std::string_view operator()(std::string_view text, std::string& buffer) const;

 private:
  enum class Kind { nfc, prepend, replace };
  struct Step {
    Kind kind;
    std::string text, by;  // prepended; replaced
  };
  void add(const JsonNode& json);
  std::vector<Step> steps_;
};

/// Unicode's normalization form C. Linear in the text, whatever it holds.
std::string to_nfc(std::string_view text);

}  // namespace osprey::bpe
