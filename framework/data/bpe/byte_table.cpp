#include "framework/data/bpe/byte_table.h"

#include <array>
#include <cstdint>

namespace osprey::bpe {
namespace {

/// From code points below U+0144 to bytes; -1 where there is none.
std::array<int16_t, 0x144> make_table() {
  std::array<int16_t, 0x144> table;
  table.fill(-1);
  int moved = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool seen = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    table[static_cast<size_t>(seen ? byte : 256 + moved++)] = static_cast<int16_t>(byte);
  }
  return table;
}

}  // namespace

std::optional<std::string> spelled_bytes(std::string_view text) {
  static const auto table = make_table();
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const auto first = static_cast<unsigned char>(text[at]);
    size_t point = first;
    if (first >= 0x80) {
      if ((first & 0xe0) != 0xc0 || at + 1 >= text.size()) return {};
      point = (first & 31u) << 6 | (static_cast<unsigned char>(text[at + 1]) & 63u);
    }
    at += first < 0x80 ? 1 : 2;
    if (point >= table.size() || table[point] < 0) return {};
    bytes.push_back(static_cast<char>(table[point]));
  }
  return bytes;
}

}  // namespace osprey::bpe
