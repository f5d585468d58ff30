#include "models/layers/layer_list.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <string_view>

namespace osprey {

namespace {

struct Range {
  int64_t first, last;
};

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text[0] == '-') return std::nullopt;
  return value;
}

std::optional<Range> range(std::string_view entry) {
  const size_t dash = entry.find('-');
  const auto first = number(entry.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : number(entry.substr(dash + 1));
  if (!first || !last || *last < *first) return std::nullopt;
  return Range{*first, *last};
}

}  // namespace

std::string layer_list_problem(const std::vector<std::string>& list, int64_t layers) {
  for (const std::string& entry : list) {
    const auto r = range(entry);
    if (!r) return fmt::format("'{}' is neither a layer such as 3 nor a range such as 4-7", entry);
    if (r->last >= layers)
      return fmt::format("names layer {}, the model has layers 0 to {}", r->last, layers - 1);
  }
  return "";
}

bool lists_layer(const std::vector<std::string>& list, int64_t layer) {
  for (const std::string& entry : list)
    if (const auto r = range(entry); r && r->first <= layer && layer <= r->last) return true;
  return false;
}

std::vector<std::string> layer_list(const std::vector<bool>& marked) {
  std::vector<std::string> list;
  for (size_t i = 0; i < marked.size(); ++i) {
    if (!marked[i]) continue;
    const size_t first = i;
    while (i + 1 < marked.size() && marked[i + 1]) ++i;
    list.push_back(first == i ? fmt::format("{}", i) : fmt::format("{}-{}", first, i));
  }
  return list;
}

}  // namespace osprey
