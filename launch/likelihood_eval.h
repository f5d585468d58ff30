#pragma once
// What osprey eval does by likelihoods: tasks, and perplexity by a sliding window.

#include <optional>
#include <string>
#include <vector>

#include "framework/eval/task.h"
#include "launch/loaded_model.h"

namespace osprey {

enum class ReportAs { text, json };

struct TaskEvalOptions {
  std::string task;
  std::optional<std::string> shots_file;  // whose rows are the examples; else the task's own
  ShotOptions shots;
  int64_t batch = 8, sequence_len = 0;
  ReportAs report = ReportAs::text;
};

/// Scores every row of a task and prints accuracies or losses, with standard errors.
/// Errors: rows that are wrong or do not fit, by file and line; batches that memory does not hold.
void evaluate_task(LoadedModel& loaded, const TaskEvalOptions& options);

/// Prints the perplexity of the validation data where each token is predicted from at least
/// sequence_len - stride tokens before it, if there are so many.
/// Errors: instruction data, of which only answers are learnt; a stride longer than a sequence.
void evaluate_windows(LoadedModel& loaded, ValidationData& data, int64_t batch, int64_t stride,
                      ReportAs report);

}  // namespace osprey
