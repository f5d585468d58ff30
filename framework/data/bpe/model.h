#pragma once
// The vocabulary and the merges: byte pair encoding of one piece of text.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "framework/data/bpe/added_tokens.h"
#include "framework/data/bpe/json_node.h"

namespace osprey::bpe {

/// A symbol of a piece while it is merged. A linked list, so that a merge moves nothing.
struct Symbol {
  int32_t token = -1, previous = -1, next = -1;
};

/// Memory of one thread while it encodes, and the pieces it met lately.
class WordSpace {
 public:
  WordSpace();

 private:
  friend class Model;
  // 64 bytes. What is longer is merged anew each time.
  struct Entry {
    static constexpr size_t most_bytes = 26, most_tokens = 9;
    uint8_t bytes = 0, tokens = 0;
    char text[most_bytes];
    int32_t token[most_tokens];
  };
  struct Pair {
    uint32_t rank;
    int32_t left, left_token, right_token, merged;  // a place in symbols_, and what stood there
  };
  std::vector<Entry> entries_;
  std::vector<int32_t> tokens_;
  std::vector<Symbol> symbols_;
  std::vector<Pair> heap_;
};

/// Const members may be called from several threads at once.
class Model {
 public:
  /// The `model` of a tokenizer.json. `byte_level`: the vocabulary spells bytes by GPT-2's table. No text
  /// becomes a special one of the `added` tokens, even where merges would lead to one. Errors: not BPE,
  /// merges without their tokens, a token number twice, settings that are not known.
  Model(const JsonNode& json, bool byte_level, const std::vector<AddedToken>& added);

  /// Appends the tokens of a piece that is not empty. Errors: a character that no token can spell.
  void encode(std::string_view piece, WordSpace& space, std::vector<int32_t>& tokens) const;

  /// One more than the largest token number.
  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  /// What a token spells: bytes, or characters of a vocabulary that is not byte_level; empty for a number
  /// without a token.
  const std::string& text(int32_t token) const { return texts_[static_cast<size_t>(token)]; }
  /// The token with this text in the file, special or not.
  std::optional<int32_t> find(const std::string& text) const;
  bool byte_fallback() const { return byte_fallback_; }
  /// May pieces be cut before each run of `mark`? If no merge joins something and a mark behind it.
  bool cuts_before(std::string_view mark) const;
  /// All that decides tokens, in an order that does not depend on the file's.
  std::string description() const;

 private:
  struct Merge {
    uint64_t pair = ~uint64_t{0};
    uint32_t rank = 0;
    int32_t merged = -1;
  };
  static uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void read_vocabulary(const JsonNode& json);
  void read_merges(const JsonNode& json);
  void insert(const Merge& merge);
  const Merge* find_merge(int32_t left, int32_t right) const;
  void spell(std::string_view piece, std::vector<Symbol>& symbols) const;
  void spell_unknown(std::string_view character, bool& after_unknown, std::vector<Symbol>& symbols) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols, std::vector<WordSpace::Pair>& heap) const;
  void merge(std::string_view piece, WordSpace& space) const;

  bool byte_level_ = false, byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
  std::optional<int32_t> unknown_;
  std::unordered_map<std::string, int32_t> vocabulary_;  // as in the file
  std::vector<std::string> texts_;
  std::vector<bool> never_;           // special: not for text
  std::vector<int32_t> byte_tokens_;  // of 256 bytes: by the table, or <0x0A>; -1 where there is none
  std::unordered_map<int32_t, int32_t> characters_;  // code point to token, if not byte_level
  std::unordered_map<std::string_view, int32_t>
      whole_;                  // of texts_, where merges are ignored for whole pieces
  std::vector<Merge> merges_;  // open addressing, a power of two
  int shift_ = 64;
};

}  // namespace osprey::bpe
