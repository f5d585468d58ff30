#include "framework/data/bpe/splitter.h"

namespace osprey::bpe {
namespace {

// OpenAI's encoder.py of GPT-2; tokenizers' ByteLevel uses it where use_regex is true.
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string replace_spaces(std::string_view text, const std::string& by) {
  std::string out;
  out.reserve(text.size() * 2);
  for (const char c : text)
    if (c == ' ')
      out += by;
    else
      out.push_back(c);
  return out;
}

}  // namespace

Splitter::Splitter(const JsonNode& json) { add(json); }

void Splitter::add(const JsonNode& json) {
  if (json.is_null()) return;
  const std::string& type = json["type"].text();
  json.check(!byte_level_ || type == "Sequence", "stands behind ByteLevel, where text is spelled in bytes");
  if (type == "Sequence") {
    json["pretokenizers"].each([&](const JsonNode& one) { add(one); });
  } else if (type == "ByteLevel") {
    Step step;
    if (json["add_prefix_space"].flag_or(true)) {
      step.prefix = Step::Prefix::always;
      step.prefix_text = " ";
    }
    if (json["use_regex"].flag_or(true)) step.pattern.emplace(kGpt2, "GPT-2");
    steps_.push_back(std::move(step));
    byte_level_ = true;
  } else if (type == "Split") {
    const std::string& behavior = json["behavior"].text();
    if (behavior != "Isolated" || json["invert"].flag_or(false))
      json.refuse("has behavior {}{}; Osprey knows Isolated, not inverted", shown(behavior),
                  json["invert"].flag_or(false) ? ", inverted" : "");
    const JsonNode pattern = json["pattern"]["Regex"];
    pattern.check(!pattern.is_null(), "is not given; Osprey splits by regular expressions");
    Step step;
    step.pattern.emplace(pattern.text(), pattern.place());
    steps_.push_back(std::move(step));
  } else if (type == "Digits") {
    Step step;
    step.pattern.emplace(json["individual_digits"].flag_or(false) ? R"(\p{N})" : R"(\p{N}+)", "Digits");
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    add_metaspace(json);
  } else {
    json.refuse("is of type `{}`; Osprey knows ByteLevel, Split, Digits, Metaspace and Sequence",
                shown(type));
  }
}

void Splitter::add_metaspace(const JsonNode& json) {
  Step step;
  step.space = json["replacement"].text_or("\u2581");
  step.prefix_text = step.space;
  step.before_space = json["split"].flag_or(true);
  const JsonNode prefix = json["prepend_scheme"];
  // Older files say it with add_prefix_space.
  const std::string scheme = prefix.text_or(json["add_prefix_space"].flag_or(true) ? "always" : "never");
  if (scheme == "always")
    step.prefix = Step::Prefix::always;
  else if (scheme == "first")
    step.prefix = Step::Prefix::first;
  else if (scheme != "never")
    prefix.refuse("is `{}`; Osprey knows always, first and never", shown(scheme));
  json["replacement"].check(!step.space.empty(), "is empty");
  steps_.push_back(std::move(step));
}

void Splitter::operator()(std::string_view text, bool at_start, MatchSpace& space, const Visit& visit) const {
  run(0, text, at_start, space, visit);
}

void Splitter::run(size_t index, std::string_view text, bool at_start, MatchSpace& space,
                   const Visit& visit) const {
  if (text.empty()) return;
  if (index == steps_.size()) return visit(text);
  const Step& step = steps_[index];
  std::string changed;
  if (!step.space.empty()) text = changed = replace_spaces(text, step.space);
  if ((step.prefix == Step::Prefix::always || (step.prefix == Step::Prefix::first && at_start)) &&
      !text.starts_with(step.prefix_text))
    text = changed = step.prefix_text + std::string(text);
  if (step.before_space) return cut_before_spaces(index, text, at_start, space, visit);
  if (!step.pattern) return run(index + 1, text, at_start, space, visit);

  const bool last = index + 1 == steps_.size();
  const auto pass = [&](size_t begin, size_t end) {
    const std::string_view piece = text.substr(begin, end - begin);
    if (last && !piece.empty())
      visit(piece);
    else
      run(index + 1, piece, at_start && begin == 0, space, visit);
  };
  size_t done = 0;
  while (done < text.size()) {
    const auto match = step.pattern->find(text, done, space);
    if (!match) break;
    if (match->begin > done) pass(done, match->begin);
    pass(match->begin, match->end);
    done = match->end;
  }
  pass(done, text.size());
}

void Splitter::cut_before_spaces(size_t index, std::string_view text, bool at_start, MatchSpace& space,
                                 const Visit& visit) const {
  const std::string& mark = steps_[index].space;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(mark, begin + 1), text.size());
    run(index + 1, text.substr(begin, end - begin), at_start && begin == 0, space, visit);
    begin = end;
  }
}

}  // namespace osprey::bpe
