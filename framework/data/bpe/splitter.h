#pragma once
// The pre-tokenizer of tokenizer.json: cuts text into the pieces within which tokens are formed.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "framework/data/bpe/json_node.h"
#include "framework/data/bpe/pattern.h"

namespace osprey::bpe {

class Splitter {
 public:
  /// The `pre_tokenizer` of a tokenizer.json, which may be null. Errors: one that is not known, by its name.
  explicit Splitter(const JsonNode& json);

  /// Does the vocabulary spell bytes, by GPT-2's table, rather than characters?
  bool byte_level() const { return byte_level_; }

  using Visit = std::function<void(std::string_view piece)>;
  /// Calls visit(piece) from left to right; pieces are not empty. `at_start`: `text` begins the whole text.
  void operator()(std::string_view text, bool at_start, MatchSpace& space, const Visit& visit) const;

 private:
  struct Step {
    std::optional<Pattern> pattern;  // matches and what is between them are pieces
    // Metaspace, and the space that ByteLevel may put before a piece.
    enum class Prefix { none, first, always } prefix = Prefix::none;
    std::string prefix_text, space;  // spaces become `space`, if given
    bool before_space = false;       // cut before every `space`
  };
  void add(const JsonNode& json);
  void add_metaspace(const JsonNode& json);
  void run(size_t step, std::string_view text, bool at_start, MatchSpace& space, const Visit& visit) const;
  void cut_before_spaces(size_t step, std::string_view text, bool at_start, MatchSpace& space,
                         const Visit& visit) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace osprey::bpe
