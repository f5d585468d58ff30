#include "framework/config/numbers.h"

#include <charconv>
#include <cmath>

#include "kernels/core/check.h"

namespace osprey {
namespace {

bool digit(char c) { return c >= '0' && c <= '9'; }

/// Without the underscores (each must stand between two digits) and a leading plus; empty when the rest is
/// no decimal number.
std::string plain_decimal(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_') {
      if (i == 0 || i + 1 == text.size() || !digit(text[i - 1]) || !digit(text[i + 1])) return {};
    } else {
      out += text[i];
    }
  }
  if (out.size() > 64) return {};
  size_t i = 0, digits = 0;
  if (i < out.size() && (out[i] == '+' || out[i] == '-')) ++i;
  while (i < out.size() && digit(out[i])) ++i, ++digits;
  if (i < out.size() && out[i] == '.') {
    ++i;
    while (i < out.size() && digit(out[i])) ++i, ++digits;
  }
  if (digits == 0) return {};
  if (i < out.size() && (out[i] == 'e' || out[i] == 'E')) {
    ++i;
    if (i < out.size() && (out[i] == '+' || out[i] == '-')) ++i;
    const size_t first = i;
    while (i < out.size() && digit(out[i])) ++i;
    if (i == first) return {};
  }
  if (i != out.size()) return {};
  return out[0] == '+' ? out.substr(1) : out;
}

}  // namespace

std::optional<double> parse_real(std::string_view text) {
  const std::string plain = plain_decimal(text);
  double value = 0;
  const auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), value);
  if (plain.empty() || error != std::errc() || end != plain.data() + plain.size()) return {};
  return value;
}

std::optional<int64_t> parse_integer(std::string_view text) {
  const std::string plain = plain_decimal(text);
  if (plain.empty()) return {};
  if (plain.find_first_of(".eE") == std::string::npos) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), value);
    if (error != std::errc() || end != plain.data() + plain.size()) return {};
    return value;
  }
  const std::optional<double> value = parse_real(text);
  if (!value || *value != std::floor(*value) || std::abs(*value) > 0x1p53) return {};
  return static_cast<int64_t>(*value);
}

std::string format_real(double value) {
  require(std::isfinite(value), "recipe", "a number in a recipe must be finite, got {}", value);
  char buffer[40];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr);
  const size_t exponent = text.find('e');
  std::string mantissa = text.substr(0, exponent);
  // Other YAML readers take 1e+11 for a text; a point makes it a number everywhere.
  if (mantissa.find('.') == std::string::npos) mantissa += ".0";
  if (exponent == std::string::npos) return mantissa;
  std::string power = text.substr(exponent + 2);
  power.erase(0, std::min(power.find_first_not_of('0'), power.size() - 1));
  return mantissa + "e" + text[exponent + 1] + power;
}

std::string describe(const Limits& limits) {
  if (limits.min && limits.max && !limits.open_min)
    return fmt::format("between {} and {}", *limits.min, *limits.max);
  std::string text;
  if (limits.min) text = fmt::format("{} {}", limits.open_min ? "more than" : "at least", *limits.min);
  if (limits.max) text += fmt::format("{}at most {}", text.empty() ? "" : " and ", *limits.max);
  return text;
}

bool within(const Limits& limits, double value) {
  if (limits.min && (limits.open_min ? !(value > *limits.min) : !(value >= *limits.min))) return false;
  return !limits.max || value <= *limits.max;
}

}  // namespace osprey
