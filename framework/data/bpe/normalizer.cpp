#include "framework/data/bpe/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "framework/files/utf8.h"

namespace osprey::bpe {
namespace {

/// Characters below U+0300 neither combine nor decompose into others than themselves.
bool is_surely_nfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xcc; });
}

int combining_class(int32_t c) { return utf8proc_get_property(c)->combining_class; }

void replace_all(std::string& text, const std::string& what, const std::string& by) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(what, at)) != std::string::npos; at = found + what.size()) {
    out.append(text, at, found - at);
    out += by;
  }
  out.append(text, at);
  text = std::move(out);
}

}  // namespace

std::string to_nfc(std::string_view text) {
  if (is_surely_nfc(text)) return std::string(text);
  // utf8proc's own decomposition sorts marks by insertion: quadratic in a run of them.
  std::vector<int32_t> points;
  points.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    int32_t point = 0;
    const auto bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                        static_cast<utf8proc_ssize_t>(text.size() - at), &point);
    require(bytes > 0, "tokenizer", "text is not UTF-8 at byte {}", at);
    at += static_cast<size_t>(bytes);
    int32_t parts[8];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(point, parts, 8, UTF8PROC_DECOMPOSE, &boundary);
    points.insert(points.end(), parts, parts + count);
  }
  for (auto begin = points.begin(); begin != points.end();) {
    const auto mark = [](int32_t c) { return combining_class(c) != 0; };
    begin = std::find_if(begin, points.end(), mark);
    const auto end = std::find_if_not(begin, points.end(), mark);
    std::stable_sort(begin, end,
                     [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
  const auto count =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  require(count >= 0, "tokenizer", "text cannot be brought into form C: {}", utf8proc_errmsg(count));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    utf8proc_uint8_t bytes[4];
    out.append(reinterpret_cast<const char*>(bytes),
               static_cast<size_t>(utf8proc_encode_char(points[static_cast<size_t>(i)], bytes)));
  }
  return out;
}

Normalizer::Normalizer(const JsonNode& json) { add(json); }

void Normalizer::add(const JsonNode& json) {
  if (json.is_null()) return;
  const std::string& type = json["type"].text();
  if (type == "Sequence") {
    json["normalizers"].each([&](const JsonNode& one) { add(one); });
  } else if (type == "NFC") {
    steps_.push_back({Kind::nfc, {}, {}});
  } else if (type == "Prepend") {
    steps_.push_back({Kind::prepend, json["prepend"].text(), {}});
  } else if (type == "Replace") {
    const JsonNode what = json["pattern"]["String"];
    what.check(!what.is_null() && !what.text().empty(), "is not given; Osprey replaces plain text only");
    steps_.push_back({Kind::replace, what.text(), json["content"].text()});
  } else {
    json.refuse("is of type `{}`; Osprey knows NFC, Prepend, Replace and Sequence", shown(type));
  }
}

std::string_view Normalizer::operator()(std::string_view text, std::string& buffer) const {
  for (const Step& step : steps_) {
    if (step.kind == Kind::nfc) {
      if (is_surely_nfc(text)) continue;
      buffer = to_nfc(text);
    } else if (step.kind == Kind::prepend) {
      if (text.empty()) continue;
      buffer = step.text + std::string(text);
    } else {
      if (text.data() != buffer.data()) buffer = text;
      replace_all(buffer, step.text, step.by);
    }
    text = buffer;
  }
  return text;
}

}  // namespace osprey::bpe
