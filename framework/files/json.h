#pragma once
// JSON from files that may be hostile.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace osprey {

/// Parses JSON text; `where` names the file in messages.
/// Errors: not JSON, not UTF-8, a key twice in one object, or nested deeper than `most_depth`.
nlohmann::json parse_json(const std::string& where, std::string_view text, int most_depth);
/// Errors: as above, or longer than `most_bytes`.
nlohmann::json read_json(const std::filesystem::path& path, int64_t most_bytes, int most_depth);

}  // namespace osprey
