#include "framework/data/json_records.h"

#include <algorithm>
#include <charconv>

#include "kernels/core/check.h"

namespace osprey {
namespace {

constexpr std::string_view kSpace = " \t\r\n";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin);
}

/// The code of a \uXXXX that begins at text[at], or -1.
int escaped_unit(std::string_view text, size_t at) {
  if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int unit = -1;
  const char *begin = text.data() + at + 2, *end = begin + 4;
  const auto [stop, problem] = std::from_chars(begin, end, unit, 16);
  return problem == std::errc() && stop == end ? unit : -1;
}

}  // namespace

JsonRecords::JsonRecords(std::string_view bytes, std::string name) : rest_(bytes), name_(std::move(name)) {
  if (rest_.starts_with("\xef\xbb\xbf")) rest_.remove_prefix(3);
  const std::string_view text = rest_.substr(std::min(rest_.size(), rest_.find_first_not_of(kSpace)));
  array_ = text.starts_with('[');
  if (!array_) return;
  skip_space();
  rest_.remove_prefix(1);
}

bool JsonRecords::next(JsonRecord& record) { return array_ ? next_element(record) : next_line(record); }

bool JsonRecords::next_line(JsonRecord& record) {
  while (!rest_.empty()) {
    const size_t end = rest_.find('\n');
    record = {line_, trimmed(rest_.substr(0, end))};
    rest_.remove_prefix(end == std::string_view::npos ? rest_.size() : end + 1);
    ++line_;
    if (!record.text.empty()) return true;
  }
  return false;
}

void JsonRecords::skip_space() {
  const size_t count = std::min(rest_.size(), rest_.find_first_not_of(kSpace));
  line_ += std::count(rest_.begin(), rest_.begin() + static_cast<int64_t>(count), '\n');
  rest_.remove_prefix(count);
}

/// Where the element that begins here ends: before the comma or bracket that stands in no string and no
/// bracket of its own. The end of the text when there is none.
size_t JsonRecords::element_end() const {
  int64_t depth = 0;
  bool text = false;
  for (size_t i = 0; i < rest_.size(); ++i) {
    const char c = rest_[i];
    if (text) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        text = false;
    } else if (c == '"') {
      text = true;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (depth > 0 && (c == ']' || c == '}')) {
      --depth;
    } else if (depth == 0 && (c == ',' || c == ']')) {
      return i;
    }
  }
  return rest_.size();
}

bool JsonRecords::next_element(JsonRecord& record) {
  skip_space();
  if (closed_) {
    require(rest_.empty(), fmt::format("{}:{}", name_, line_),
            "something follows the array; give one array, or one object a line");
    return false;
  }
  if (rest_.starts_with(']')) {
    rest_.remove_prefix(1);
    closed_ = true;
    return next_element(record);
  }
  const size_t end = element_end();
  require(end < rest_.size(), fmt::format("{}:{}", name_, line_),
          "the array is not closed; the file is cut short or damaged");
  record = {line_, trimmed(rest_.substr(0, end))};
  line_ += std::count(rest_.begin(), rest_.begin() + static_cast<int64_t>(end), '\n');
  rest_.remove_prefix(end);
  if (rest_.starts_with(',')) rest_.remove_prefix(1);
  return true;
}

std::string_view mend_surrogates(std::string_view text, std::string& scratch) {
  const auto high = [](int unit) { return unit >= 0xd800 && unit < 0xdc00; };
  const auto low = [](int unit) { return unit >= 0xdc00 && unit < 0xe000; };
  bool copied = false;
  for (size_t at = text.find('\\'); at != std::string_view::npos && at + 1 < text.size();) {
    const int unit = escaped_unit(text, at);
    size_t next = at + (unit < 0 ? 2 : 6);
    if (high(unit) && low(escaped_unit(text, next))) {
      next += 6;
    } else if (high(unit) || low(unit)) {
      if (!copied) scratch = text;
      copied = true;
      scratch.replace(at, 6, "\\ufffd");
    }
    at = text.find('\\', next);
  }
  return copied ? std::string_view(scratch) : text;
}

}  // namespace osprey
