#pragma once
// A tokenizer for tests of templates: a token a byte, and special tokens by name.

#include <algorithm>
#include <string>
#include <vector>

#include "framework/data/instruction_row.h"
#include "framework/data/tokenizer.h"

namespace osprey {

class SpecialBytes final : public Tokenizer {
 public:
  /// Specials are tokens 258, 259, ...; </s> is 256, <s> is 257.
  explicit SpecialBytes(std::vector<std::string> specials = {}, bool adds_bos = true)
      : specials_(std::move(specials)), adds_bos_(adds_bos) {
    specials_.insert(specials_.begin(), {"</s>", "<s>"});
  }
  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  }
  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    for (const int32_t t : tokens)
      if (t < 256) text.push_back(static_cast<char>(t));
    return text;
  }
  std::string kind() const override { return "bytes"; }
  int64_t vocab_size() const override { return 256 + static_cast<int64_t>(specials_.size()); }
  int32_t eos_id() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return 257; }
  bool adds_bos() const override { return adds_bos_; }
  std::optional<int32_t> special_id(std::string_view text) const override {
    const auto at = std::find(specials_.begin(), specials_.end(), text);
    if (at == specials_.end()) return {};
    return static_cast<int32_t>(256 + (at - specials_.begin()));
  }
  std::optional<std::string> special_text(int32_t token) const override {
    if (token < 256 || token >= vocab_size()) return {};
    return specials_[static_cast<size_t>(token - 256)];
  }
  void encode_with_specials(std::string_view text, std::vector<int32_t>& tokens) const override {
    while (!text.empty()) {
      const auto at = std::find_if(specials_.begin(), specials_.end(),
                                   [&](const std::string& s) { return text.starts_with(s); });
      tokens.push_back(at == specials_.end() ? static_cast<unsigned char>(text[0])
                                             : static_cast<int32_t>(256 + (at - specials_.begin())));
      text.remove_prefix(at == specials_.end() ? 1 : at->size());
    }
  }
  std::string fingerprint() const override { return "special-bytes"; }
  void save(const std::string&) const override {}

  /// Tokens as text, special ones by name, trained stretches in brackets.
  std::string shown(const TokenRow& row) const {
    std::string text;
    bool open = false;
    for (size_t i = 0; i < row.tokens.size(); ++i) {
      if ((row.trained[i] != 0) != open) text += open ? "]" : "[";
      open = row.trained[i] != 0;
      text += special_text(row.tokens[i]).value_or(std::string(1, static_cast<char>(row.tokens[i])));
    }
    return text + (open ? "]" : "");
  }

 private:
  std::vector<std::string> specials_;
  bool adds_bos_;
};

}  // namespace osprey
