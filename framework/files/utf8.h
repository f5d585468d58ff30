#pragma once
// Is this text? UTF-8 without overlong forms, surrogates or anything past U+10FFFF.

#include <cstddef>
#include <optional>
#include <string_view>

namespace osprey {

/// Bytes of the character that begins at text[at], or 0 when none does. `at` is below text.size().
size_t utf8_length(std::string_view text, size_t at);

/// Where the first byte that is not UTF-8 stands; nullopt when all of `text` is valid.
std::optional<size_t> find_malformed_utf8(std::string_view text);

}  // namespace osprey
