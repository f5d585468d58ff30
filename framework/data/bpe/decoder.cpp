#include "framework/data/bpe/decoder.h"

#include <charconv>

namespace osprey::bpe {

Decoder::Decoder(const JsonNode& json) { add(json); }

void Decoder::add(const JsonNode& json) {
  if (json.is_null()) return;
  const std::string& type = json["type"].text();
  if (type == "Sequence") {
    json["decoders"].each([&](const JsonNode& one) { add(one); });
  } else if (type == "Replace") {
    json["content"].check(json["content"].text() == " ", "is no space; Osprey decodes spaces only");
    space_ = json["pattern"]["String"].text();
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Strip") {
    json.check(json["content"].text() == " " && json["start"].value() == 1 && json["stop"].value() == 0,
               "strips something else than one space at the beginning");
    strip_ = true;
  } else if (type == "Metaspace") {
    space_ = json["replacement"].text_or("\u2581");
    strip_ = json["prepend_scheme"].text_or(json["add_prefix_space"].flag_or(true) ? "always" : "never") !=
             "never";
  } else if (type != "ByteLevel" && type != "Fuse") {  // bytes are spelled out as the vocabulary is read
    json.refuse(
        "is of type `{}`; Osprey knows ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace and Sequence",
        shown(type));
  }
}

void Decoder::append(std::string_view spelled, bool first, std::string& text) const {
  if (byte_fallback_ && spelled.size() == 6 && spelled.starts_with("<0x") && spelled[5] == '>') {
    unsigned byte = 0;
    const auto [end, error] = std::from_chars(spelled.data() + 3, spelled.data() + 5, byte, 16);
    if (error == std::errc() && end == spelled.data() + 5) {
      text.push_back(static_cast<char>(byte));
      return;
    }
  }
  bool strip = strip_ && first;
  while (!spelled.empty()) {
    const size_t end = space_.empty() ? spelled.size() : std::min(spelled.find(space_), spelled.size());
    text.append(spelled.substr(0, end));
    if (end == spelled.size()) break;
    if (!(strip && end == 0)) text.push_back(' ');
    strip = false;
    spelled.remove_prefix(end + space_.size());
  }
}

std::optional<std::string> first_token(const JsonNode& json) {
  if (json.is_null()) return {};
  const std::string& type = json["type"].text();
  if (type == "ByteLevel") return {};  // concerns offsets only
  if (type == "Sequence") {
    std::optional<std::string> first;
    json["processors"].each([&](const JsonNode& one) {
      if (const auto found = first_token(one); found && !first) first = found;
    });
    return first;
  }
  if (type != "TemplateProcessing")
    json.refuse("is of type `{}`; Osprey knows TemplateProcessing, ByteLevel and Sequence", shown(type));
  const JsonNode single = json["single"];
  std::optional<std::string> first;
  bool text_came = false;
  single.each([&](const JsonNode& one) {
    const JsonNode special = one["SpecialToken"];
    if (special.is_null())
      text_came = true;
    else if (!text_came && !first)
      first = special["id"].text();
  });
  return first;
}

}  // namespace osprey::bpe
