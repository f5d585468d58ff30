#pragma once
// Texts that are hard on tokenizers, drawn at random.

#include <utf8proc.h>

#include <string>
#include <vector>

#include "framework/data/bpe/pattern.h"
#include "tests/support/fuzz.h"

namespace osprey::test {

/// Valid UTF-8 of any kind of characters, with runs.
inline std::string any_text(FuzzDraws& draws) {
  static const std::vector<std::string> parts = {
      " ",      "  ",     "\n",         "\t",   "the",    "'s",          "'\u017f", "12", "e\u0301",
      "\u0323", "\u9c7c", "<|im_end|>", "</s>", "\u00a0", "<tool_call>", "\r",      "-",  "a"};
  std::string text;
  for (size_t i = draws.below(60); i > 0; --i) {
    if (draws.below(3) > 0) {
      const std::string& part = parts[draws.below(parts.size())];
      for (size_t n = 1 + (draws.below(8) == 0 ? draws.below(50) : 0); n > 0; --n) text += part;
      continue;
    }
    auto point = static_cast<uint32_t>(draws.below(draws.below(2) ? 0x110000 : 0x3000));
    if (point >= 0xd800 && point < 0xe000) point -= 0x1000;
    // Of marks the tokenizers library knows fewer than utf8proc.
    if (point >= 0x800 && utf8proc_get_property(static_cast<int32_t>(point))->combining_class != 0) continue;
    utf8proc_uint8_t bytes[4];
    text.append(reinterpret_cast<const char*>(bytes),
                static_cast<size_t>(utf8proc_encode_char(static_cast<int32_t>(point), bytes)));
  }
  // Letters of newer Unicode than PCRE2's would be taken differently.
  static const bpe::Pattern unassigned(R"(\p{Cn})", "here");
  bpe::MatchSpace space;
  while (const auto match = unassigned.find(text, 0, space))
    text.erase(match->begin, match->end - match->begin);
  return text;
}

}  // namespace osprey::test
