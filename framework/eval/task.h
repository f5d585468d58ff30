#pragma once
// Evaluation tasks out of JSON lines: questions with choices, and texts with a continuation.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "framework/data/tokenizer.h"

namespace osprey {

struct TaskRow {
  std::string query;
  std::vector<std::string> choices;  // one: a continuation, which is only scored
  size_t gold = 0;
  int64_t line = 0;
};

struct Task {
  enum class Kind { multiple_choice, continuation };
  std::string path;
  Kind kind = Kind::multiple_choice;
  std::vector<TaskRow> rows;
};

/// Reads {"query" | "question" | "prompt": text} with {"choices": [text, ...], "gold" | "answer": index or
/// letter}, or with {"completion" | "continuation" | "target": text}; all rows of one kind. Other keys are
/// ignored. Errors: name file and line.
Task read_task(const std::filesystem::path& path);

struct ShotOptions {
  int64_t shots = 0;  // answered rows before each question
  uint64_t seed = 42;
};

/// What stands before the choices of a row: answered rows drawn from `examples`, and the query, with blank
/// lines between. A row is no example for itself: `self`, if `examples` are the rows it comes from.
std::string context_of(const TaskRow& row, std::span<const TaskRow> examples, const TaskRow* self,
                       const ShotOptions& options);

/// A choice as it follows a context: after a space, unless either brings white space of its own.
std::string continuation_of(std::string_view context, std::string_view choice);

/// Tokens of context and continuation, encoded as one text; `scored` of them are the continuation's.
/// Reference: lm-evaluation-harness, TemplateLM._encode_pair: white space at the end of the context goes to
/// the continuation.
struct EncodedPair {
  std::vector<int32_t> tokens;
  int64_t scored = 0;
};
/// Errors: a continuation without a token.
EncodedPair encode_pair(const Tokenizer& tokenizer, std::string_view context, std::string_view continuation);

struct Estimate {
  double value = 0, standard_error = 0;
};
/// The mean and its standard error, of a sample.
Estimate mean_of(std::span<const double> values);

struct TaskScores {
  int64_t rows = 0;
  Estimate accuracy;             // the likeliest choice is right
  Estimate accuracy_normalized;  // likeliest by byte of the choice
  Estimate loss;                 // nats of a row's right continuation, per token
  double bits_per_byte = 0;      // of all right continuations together
};
/// `sums`: of all choices of all rows, in order, with as many tokens each.
TaskScores score_task(const Task& task, std::span<const double> sums, std::span<const int64_t> tokens);

}  // namespace osprey
