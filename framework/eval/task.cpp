#include "framework/eval/task.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "framework/files/file.h"
#include "framework/files/json.h"
#include "framework/files/utf8.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

using nlohmann::json;

constexpr int64_t kMostBytes = int64_t{1} << 30;

/// The value under the one of `keys` that is there, or null. Errors: two of them are.
const json* one_of(const json& row, const std::string& where, std::initializer_list<const char*> keys) {
  const json* found = nullptr;
  const char* name = nullptr;
  for (const char* key : keys) {
    const auto at = row.find(key);
    if (at == row.end()) continue;
    require(!found, where, "has both `{}` and `{}`, which mean the same; remove one", name ? name : "", key);
    found = &*at;
    name = key;
  }
  return found;
}

const std::string& text_of(const json& value, const std::string& where, const char* what) {
  require(value.is_string(), where, "{} is {}, expected text", what, shown(value.dump()));
  return value.get_ref<const std::string&>();
}

/// 1, "1" or "B".
size_t gold_of(const json& value, size_t choices, const std::string& where) {
  int64_t gold = -1;
  if (value.is_number_integer()) {
    gold = value.is_number_unsigned() && value > INT64_MAX ? -1 : value.get<int64_t>();
  } else if (value.is_string() && value.get_ref<const std::string&>().size() == 1) {
    const char c = value.get_ref<const std::string&>()[0];
    gold = c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a'
           : c >= '0' && c <= '9' ? c - '0'
                                  : -1;
  }
  require(gold >= 0 && gold < static_cast<int64_t>(choices), where,
          "the answer {} is none of the {} choices; give an index from 0 or a letter from A",
          shown(value.dump()), choices);
  return static_cast<size_t>(gold);
}

TaskRow read_row(const json& json_row, const std::string& where, int64_t line) {
  require(json_row.is_object(), where, "is no JSON object");
  TaskRow row{.line = line};
  const json* query = one_of(json_row, where, {"query", "question", "prompt"});
  require(query, where, "has no `query` (nor `question`, `prompt`); give the text that is continued");
  row.query = text_of(*query, where, "the query");
  const json* choices = one_of(json_row, where, {"choices"});
  const json* continuation = one_of(json_row, where, {"completion", "continuation", "target"});
  require(!choices != !continuation, where,
          "has {} `choices` {} a `completion`; a row has choices and an answer, or a completion",
          choices ? "both" : "neither", choices ? "and" : "nor");
  if (continuation) {
    row.choices = {text_of(*continuation, where, "the completion")};
  } else {
    require(choices->is_array() && choices->size() >= 2, where, "has fewer than two choices");
    for (const json& choice : *choices) row.choices.push_back(text_of(choice, where, "a choice"));
    const json* gold = one_of(json_row, where, {"gold", "answer"});
    require(gold, where, "has choices, but no `gold` (nor `answer`); say which choice is right");
    row.gold = gold_of(*gold, row.choices.size(), where);
  }
  for (const std::string& choice : row.choices) require(!choice.empty(), where, "has an empty choice");
  return row;
}

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace

Task read_task(const std::filesystem::path& path) {
  const std::string text = read_file(path, kMostBytes);
  Task task{.path = path.string()};
  int64_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view row_text(text.data() + at, end - at);
    at = end + 1;
    ++line;
    if (std::all_of(row_text.begin(), row_text.end(), is_space)) continue;
    const std::string where = fmt::format("{}:{}", task.path, line);
    require(!find_malformed_utf8(row_text), where, "is not UTF-8 text");
    TaskRow row = read_row(parse_json(where, row_text, /*most_depth=*/16), where, line);
    const auto kind = row.choices.size() > 1 ? Task::Kind::multiple_choice : Task::Kind::continuation;
    if (task.rows.empty()) task.kind = kind;
    require(kind == task.kind, where,
            "has {}, unlike the rows before it; put each kind into a file of its own",
            kind == Task::Kind::multiple_choice ? "choices" : "a completion");
    task.rows.push_back(std::move(row));
  }
  require(!task.rows.empty(), task.path, "holds no row; give JSON lines with `query`, `choices` and `gold`");
  return task;
}

std::string context_of(const TaskRow& row, std::span<const TaskRow> examples, const TaskRow* self,
                       const ShotOptions& options) {
  std::vector<const TaskRow*> others;
  for (const TaskRow& example : examples)
    if (&example != self) others.push_back(&example);
  require(options.shots <= static_cast<int64_t>(others.size()), "eval",
          "--shots {} are more than the {} other rows there are", options.shots, others.size());
  std::string context;
  for (int64_t shot = 0; shot < options.shots; ++shot) {
    const size_t left = others.size() - static_cast<size_t>(shot);
    const uint64_t draw =
        random_u64(options.seed, static_cast<uint64_t>(row.line), static_cast<uint64_t>(shot));
    std::swap(others[static_cast<size_t>(shot)], others[static_cast<size_t>(shot) + draw % left]);
    const TaskRow& example = *others[static_cast<size_t>(shot)];
    context += example.query + continuation_of(example.query, example.choices[example.gold]) + "\n\n";
  }
  return context + row.query;
}

std::string continuation_of(std::string_view context, std::string_view choice) {
  const bool spaced = context.empty() || is_space(context.back()) || is_space(choice.front());
  return (spaced ? "" : " ") + std::string(choice);
}

EncodedPair encode_pair(const Tokenizer& tokenizer, std::string_view context, std::string_view continuation) {
  std::string rest;
  while (!context.empty() && is_space(context.back())) {
    rest.insert(rest.begin(), context.back());
    context.remove_suffix(1);
  }
  rest += continuation;
  EncodedPair pair;
  // Texts begin as the tokenizer's files say; with nothing before the continuation, as a document does.
  if (tokenizer.adds_bos())
    pair.tokens.push_back(*tokenizer.bos_id());
  else if (context.empty())
    pair.tokens.push_back(tokenizer.eos_id());
  const size_t before = pair.tokens.size() + tokenizer.encode(context).size();
  tokenizer.encode(std::string(context) + rest, pair.tokens);
  // Where the two join, fewer tokens may spell the whole.
  pair.scored = static_cast<int64_t>(pair.tokens.size()) - static_cast<int64_t>(before);
  require(pair.scored > 0, "eval", "the continuation '{}' gives no token of its own after '{}'", shown(rest),
          shown(context));
  return pair;
}

Estimate mean_of(std::span<const double> values) {
  const auto n = static_cast<double>(values.size());
  Estimate e{std::accumulate(values.begin(), values.end(), 0.0) / n};
  if (values.size() < 2) return e;
  double squares = 0;
  for (const double v : values) squares += (v - e.value) * (v - e.value);
  e.standard_error = std::sqrt(squares / (n - 1) / n);
  return e;
}

TaskScores score_task(const Task& task, std::span<const double> sums, std::span<const int64_t> tokens) {
  std::vector<double> right, right_normalized, losses;
  double nats = 0, bytes = 0;
  size_t at = 0;
  for (const TaskRow& row : task.rows) {
    size_t best = 0, best_normalized = 0;
    const auto sum = [&](size_t choice) { return sums[at + choice]; };
    const auto by_byte = [&](size_t choice) {
      return sums[at + choice] / static_cast<double>(row.choices[choice].size());
    };
    for (size_t c = 1; c < row.choices.size(); ++c) {
      if (sum(c) > sum(best)) best = c;
      if (by_byte(c) > by_byte(best_normalized)) best_normalized = c;
    }
    right.push_back(best == row.gold);
    right_normalized.push_back(best_normalized == row.gold);
    losses.push_back(-sum(row.gold) / static_cast<double>(tokens[at + row.gold]));
    nats -= sum(row.gold);
    bytes += static_cast<double>(row.choices[row.gold].size());
    at += row.choices.size();
  }
  return {.rows = static_cast<int64_t>(task.rows.size()),
          .accuracy = mean_of(right),
          .accuracy_normalized = mean_of(right_normalized),
          .loss = mean_of(losses),
          .bits_per_byte = nats / bytes / std::numbers::ln2};
}

}  // namespace osprey
