#pragma once
// GPT-2's table: every byte as a character that can be seen, in which byte-level vocabularies are written.

#include <optional>
#include <string>
#include <string_view>

namespace osprey::bpe {

/// The bytes that `text` spells, or nothing where a character is not in the table.
/// Reference: bytes_to_unicode in encoder.py of GPT-2.
std::optional<std::string> spelled_bytes(std::string_view text);

}  // namespace osprey::bpe
