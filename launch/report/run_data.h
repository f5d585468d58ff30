#pragma once
// What a report needs of a run directory. Nothing in it is trusted: a broken line is counted and named.

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace osprey::report {

/// One metric over time; NaN where an entry had no finite value.
struct Curve {
  std::vector<int64_t> steps, tokens;
  std::vector<double> values;
  void add(int64_t step, int64_t tokens_seen, double value);
};

/// One metric of one tensor: a curve for each layer (-1: after the last).
using LayerCurves = std::map<int, Curve>;
/// "context" or "osp", tensor, metric.
using OutlierKey = std::array<std::string, 3>;
/// What was quantized: "weights", "activations" or "gradients"; layer; weight.
struct QuantizedOperand {
  std::string role;
  int layer = 0;
  std::string weight;
  auto operator<=>(const QuantizedOperand&) const = default;
};

struct RunData {
  std::filesystem::path dir;
  std::string name;  // unique among the runs of one report

  std::map<std::string, Curve> train;  // by key of the train entries: "loss", "grad_norm", ...
  Curve validation;  // loss of the run's own eval entries, unquantized or quantized as trained
  /// By quantization ("none", "as trained", "w8a8", ...): the run's own last one; of quantizations that
  /// osprey eval tried, the one of the latest checkpoint, on the run's data and in its sequences.
  std::map<std::string, double> eval_loss;
  std::map<std::string, int64_t> eval_step;  // of the same
  std::map<OutlierKey, LayerCurves> outliers;
  std::map<QuantizedOperand, std::map<std::string, Curve>> quantization;  // by metric: "relative_error", ...
  std::vector<std::pair<int64_t, std::string>> skipped;  // step and reason of skipped updates
  std::vector<int64_t> resumed;                          // steps from which a process went on
  int64_t step = 0, tokens = 0;                          // the largest seen

  std::map<std::string, std::string> summary;  // flattened: "memory_peak_bytes.activations", as text
  std::vector<std::pair<std::string, std::string>> recipe;  // flattened: "model.layers", in file order

  int64_t entries = 0;
  int64_t bad_lines = 0;
  std::vector<std::string> notes;  // what was missing or wrong, for people
};

/// Reads recipe.yaml, metrics.jsonl and summary.json of `dir`.
/// Errors: throws when `dir` does not exist or holds neither recipe.yaml nor metrics.jsonl.
RunData read_run(const std::filesystem::path& dir);

/// Gives every run a name of its own: the recipe's run.name where that tells them apart, else with the
/// directory.
void name_runs(std::vector<RunData>& runs);

/// At most about `most` points that keep every bucket's smallest and largest value, so that spikes stay.
Curve thinned(const Curve& curve, size_t most);

}  // namespace osprey::report
