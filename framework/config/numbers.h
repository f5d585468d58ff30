#pragma once
// How recipes write numbers: 5, 1e9, 4_194_304, 5.0e-4, 0.2. Not 0x10, not "5", not inf.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "framework/config/fields.h"

namespace osprey {

/// The number that the whole of `text` spells, or empty. Errors never.
std::optional<double> parse_real(std::string_view text);

/// As parse_real, but only whole numbers; 1e9 and 1.0e11 are whole, 1.5 is not, and forms with a point or an
/// exponent end at 2^53, where not every whole number has a double.
std::optional<int64_t> parse_integer(std::string_view text);

/// The shortest text that parse_real and any YAML reader turn back into the same double: 0.2, 1.0, 5.0e-4.
std::string format_real(double value);

/// "at least 1", "more than 0", "between 0 and 1"; empty for no limits.
std::string describe(const Limits& limits);
bool within(const Limits& limits, double value);

}  // namespace osprey
