#include "framework/data/instruction_row.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "framework/data/json_records.h"
#include "framework/files/file.h"
#include "framework/files/json.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

using nlohmann::json;
using Role = Message::Role;

constexpr size_t kMaxRowBytes = size_t{16} << 20;
constexpr int kMostDepth = 32;

struct FormatName {
  InstructionFormat format;
  const char* name;
  std::vector<const char*> keys;  // a row of this format has all of them
};

/// In the order that decides: alpaca files often carry the whole prompt under `text` too.
const std::vector<FormatName>& formats() {
  using enum InstructionFormat;
  static const std::vector<FormatName> all = {
      {messages, "messages", {"messages"}},
      {sharegpt, "sharegpt", {"conversations"}},
      {tokenized, "tokenized", {"input_ids"}},
      {input_output, "input_output", {"segments"}},
      {alpaca, "alpaca", {"instruction"}},
      {prompt_completion, "prompt_completion", {"prompt", "completion"}},
      {completion, "completion", {"text"}}};
  return all;
}

bool has_keys(const json& row, const FormatName& format) {
  return std::all_of(format.keys.begin(), format.keys.end(), [&](const char* k) { return row.contains(k); });
}

/// Thrown and caught here: the row is dropped.
struct Drop {
  DroppedRow why;
};
[[noreturn]] void drop(std::string reason, std::string detail = {}) {
  throw Drop{{std::move(reason), std::move(detail)}};
}

json parse(const std::string& where, std::string_view text) {
  std::string scratch;
  return parse_json(where, mend_surrogates(text, scratch), kMostDepth);
}

/// Text under a key; absent and null are nothing.
std::optional<std::string> text_of(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return {};
  if (!found->is_string()) drop(fmt::format("`{}` is not text", key));
  return found->get<std::string>();
}

std::string required_text(const json& object, const char* key) {
  auto text = text_of(object, key);
  if (!text) drop(fmt::format("`{}` is missing", key));
  return *std::move(text);
}

const json& required_list(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) drop(fmt::format("`{}` is not a list", key));
  return *found;
}

const json& required_object(const json& value, const char* key) {
  if (!value.is_object()) drop(fmt::format("an entry of `{}` is not an object", key));
  return value;
}

Role role_named(const std::string& word) {
  for (const auto& [role, words] : {std::pair{Role::system, std::array{"system", "developer", "", ""}},
                                    {Role::user, std::array{"user", "human", "", ""}},
                                    {Role::assistant, std::array{"assistant", "gpt", "model", "bot"}},
                                    {Role::tool, std::array{"tool", "function", "observation", "ipython"}}})
    for (const char* known : words)
      if (word == known && !word.empty()) return role;
  if (word == "function_call") drop("tool calls are not supported");
  drop("a role is unknown", fmt::format("role '{}'", shown(word)));
}

/// A text, or the texts of a list of parts joined.
std::string content_of(const json& message) {
  const auto found = message.find("content");
  if (found == message.end() || !found->is_array()) return required_text(message, "content");
  std::string text;
  for (const json& part : *found) {
    const auto type = text_of(required_object(part, "content"), "type");
    if (type.value_or("text") != "text")
      drop("a content part is not text", fmt::format("type '{}'", shown(*type)));
    text += required_text(part, "text");
  }
  return text;
}

/// What `train`, `training` or `weight` of a message says; true where none does.
bool trained(const json& message) {
  for (const char* key : {"train", "training", "weight"}) {
    const auto found = message.find(key);
    if (found == message.end() || found->is_null()) continue;
    if (found->is_boolean()) return found->get<bool>();
    if (found->is_number() && (*found == 0 || *found == 1)) return *found == 1;
    drop(fmt::format("`{}` of a message is neither 0 nor 1", key));
  }
  return true;
}

void add_messages(const json& list, const char* key, Conversation& into) {
  for (const json& entry : list) {
    const json& message = required_object(entry, key);
    if (message.contains("tool_calls") && !message["tool_calls"].empty())
      drop("tool calls are not supported");
    into.push_back({.role = role_named(required_text(message, "role")),
                    .content = content_of(message),
                    .train = trained(message)});
  }
}

Conversation alpaca(const json& row) {
  Conversation turns;
  if (auto system = text_of(row, "system"); system && !system->empty())
    turns.push_back({.role = Role::system, .content = *std::move(system)});
  if (row.contains("history") && !row["history"].is_null())
    for (const json& pair : required_list(row, "history")) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
        drop("an entry of `history` is not a pair of texts");
      turns.push_back({.role = Role::user, .content = pair[0].get<std::string>()});
      turns.push_back({.role = Role::assistant, .content = pair[1].get<std::string>()});
    }
  turns.push_back({.role = Role::user,
                   .content = required_text(row, "instruction"),
                   .input = text_of(row, "input").value_or("")});
  turns.push_back({.role = Role::assistant, .content = required_text(row, "output")});
  return turns;
}

Conversation sharegpt(const json& row) {
  Conversation turns;
  if (auto system = text_of(row, "system"); system && !system->empty())
    turns.push_back({.role = Role::system, .content = *std::move(system)});
  for (const json& entry : required_list(row, "conversations")) {
    const json& turn = required_object(entry, "conversations");
    turns.push_back({.role = role_named(required_text(turn, "from")),
                     .content = required_text(turn, "value"),
                     .train = trained(turn)});
  }
  return turns;
}

Conversation prompt_completion(const json& row) {
  Conversation turns;
  if (row["prompt"].is_array()) {
    add_messages(row["prompt"], "prompt", turns);
    for (Message& turn : turns) turn.train = false;  // only the completion is learnt
    add_messages(required_list(row, "completion"), "completion", turns);
  } else {
    turns.push_back({.role = Role::user, .content = required_text(row, "prompt")});
    turns.push_back({.role = Role::assistant, .content = required_text(row, "completion")});
  }
  return turns;
}

/// What every conversation must be to be learnt from.
Conversation checked(Conversation turns) {
  const auto blank = [](const std::string& s) { return s.find_first_not_of(" \t\r\n") == std::string::npos; };
  if (turns.empty() || turns.back().role != Role::assistant) drop("it does not end with an answer");
  for (size_t i = 0; i < turns.size(); ++i) {
    if (i > 0 && turns[i].role == Role::system) drop("a system message is not the first");
    if (turns[i].role == Role::assistant && blank(turns[i].content)) drop("an answer is empty");
  }
  if (std::none_of(turns.begin(), turns.end(), [](const Message& m) { return m.role == Role::user; }))
    drop("nobody asks anything");
  return turns;
}

std::vector<Passage> segments(const json& row) {
  std::vector<Passage> passages;
  for (const json& entry : required_list(row, "segments")) {
    const json& segment = required_object(entry, "segments");
    if (!segment.contains("label") || !segment["label"].is_boolean())
      drop("`label` of a segment is not true or false");
    passages.push_back({required_text(segment, "text"), segment["label"].get<bool>()});
  }
  if (passages.empty()) drop("`segments` is empty");
  return passages;
}

std::vector<int64_t> integers(const json& row, const char* key) {
  std::vector<int64_t> numbers;
  for (const json& entry : required_list(row, key)) {
    if (!entry.is_number_integer()) drop(fmt::format("an entry of `{}` is not a whole number", key));
    numbers.push_back(entry.get<int64_t>());
  }
  return numbers;
}

TokenRow tokenized(const json& row) {
  constexpr int64_t ignored = -100;
  const std::vector<int64_t> ids = integers(row, "input_ids");
  const std::vector<int64_t> labels = row.contains("labels") ? integers(row, "labels") : ids;
  if (labels.size() != ids.size())
    drop("`labels` and `input_ids` differ in length", fmt::format("{} and {}", labels.size(), ids.size()));
  TokenRow tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] > INT32_MAX)
      drop("a token is outside the vocabulary", fmt::format("{}", ids[i]));
    if (labels[i] != ignored && labels[i] != ids[i])
      drop("a label is neither -100 nor its token", fmt::format("label {} of token {}", labels[i], ids[i]));
    tokens.tokens.push_back(static_cast<int32_t>(ids[i]));
    tokens.trained.push_back(labels[i] != ignored);
  }
  if (tokens.tokens.empty()) drop("`input_ids` is empty");
  return tokens;
}

InstructionRow convert(const json& row, InstructionFormat format) {
  Conversation turns;
  switch (format) {
    case InstructionFormat::automatic:
      break;
    case InstructionFormat::alpaca:
      return checked(alpaca(row));
    case InstructionFormat::sharegpt:
      return checked(sharegpt(row));
    case InstructionFormat::messages:
      add_messages(required_list(row, "messages"), "messages", turns);
      return checked(turns);
    case InstructionFormat::prompt_completion:
      return checked(prompt_completion(row));
    case InstructionFormat::completion: {
      Passage passage{.text = required_text(row, "text")};
      if (passage.text.empty()) drop("`text` is empty");
      return std::vector{std::move(passage)};
    }
    case InstructionFormat::input_output:
      return segments(row);
    case InstructionFormat::tokenized:
      return tokenized(row);
  }
  fail("instruction rows", "automatic is no format of a row");
}

}  // namespace

const char* name(Role role) {
  constexpr std::array names = {"system", "user", "assistant", "tool"};
  return names[static_cast<size_t>(role)];
}

const char* name(InstructionFormat format) {
  for (const FormatName& f : formats())
    if (f.format == format) return f.name;
  return "auto";
}

InstructionFormat sniff_format(const std::string& where, std::string_view text) {
  const json row = parse(where, text.substr(0, kMaxRowBytes));
  require(row.is_object(), where,
          "a row must be a JSON object, as in {{\"instruction\": ..., \"output\": ...}}");
  std::string known;
  for (const FormatName& format : formats()) {
    if (has_keys(row, format)) return format.format;
    known +=
        fmt::format("{}{} ({})", known.empty() ? "" : ", ", format.name, fmt::join(format.keys, " and "));
  }
  fail(where, "the row has the keys of no format; the formats and their keys: {}", known);
}

std::variant<InstructionRow, DroppedRow> parse_row(const std::string& where, std::string_view text,
                                                   InstructionFormat format) {
  if (text.size() > kMaxRowBytes)
    return DroppedRow{fmt::format("it is longer than {} MiB", kMaxRowBytes >> 20),
                      fmt::format("{} bytes", text.size())};
  json row;
  try {
    row = parse(where, text);
  } catch (const Error& e) {
    const std::string said = e.what();  // "[file:line] is not valid JSON: ..."
    return DroppedRow{"it is not JSON, or not fit to be read",
                      said.substr(std::min(said.size(), said.find("] ") + 2))};
  }
  if (!row.is_object()) return DroppedRow{"it is not a JSON object", {}};
  const auto mine = std::find_if(formats().begin(), formats().end(),
                                 [&](const FormatName& f) { return f.format == format; });
  if (!has_keys(row, *mine)) {
    for (const FormatName& other : formats())
      require(!has_keys(row, other), where,
              "this row is of format {}, but the file began as {}; split the file, one format each",
              other.name, mine->name);
    return DroppedRow{fmt::format("`{}` is missing", fmt::join(mine->keys, "` or `")), {}};
  }
  try {
    return convert(row, format);
  } catch (const Drop& d) {
    return d.why;
  }
}

}  // namespace osprey
