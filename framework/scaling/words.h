#pragma once
// Lists of words as messages show them.

#include <string>
#include <string_view>
#include <vector>

namespace osprey::scaling {

/// "adamw, muon". Not fmt::join, whose parser of formats GCC 12 takes for an overrun when it inlines it.
inline std::string joined(const std::vector<std::string>& words, std::string_view between = ", ") {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += between;
    text += word;
  }
  return text;
}

}  // namespace osprey::scaling
