#pragma once
// The recipe: every spec of the house in one tree. Each is declared beside its owner; what concerns two of
// them at once is checked here.

#include <optional>
#include <string>
#include <vector>

#include "framework/checkpoint/checkpoint.h"
#include "framework/config/fields.h"
#include "framework/data/data_spec.h"
#include "framework/finetune/spec.h"
#include "framework/parallel/sharding.h"
#include "framework/quant/scheme.h"
#include "framework/telemetry/spec.h"
#include "framework/train/spec.h"
#include "models/spec.h"
#include "optim/groups.h"
#include "optim/schedule.h"

namespace osprey {

struct Recipe {
  RunSpec run;
  std::string
      model_path;  // of a Hugging Face directory that training starts from; `model` is then what it holds
  ModelSpec model;
  FinetuneSpec finetune;
  DataSpec data;
  std::vector<OptimizerGroupSpec> optim;
  std::vector<QuantGroupSpec> quant;
  ScheduleSpec schedule;
  TrainSpec train;
  ParallelSpec parallel;
  CheckpointSpec checkpoint;
  TelemetrySpec telemetry;

  void fields(Fields& f);
  /// Rules that need the number of ranks, which is known under mpirun and to `osprey check --ranks`.
  void rank_rules(Fields& f, int64_t ranks) const;
};

/// Must the model directory that a recipe may name hold weights, or is its config.json enough?
enum class ModelFiles { weights, config };

/// Reads, overrides and checks a recipe file; where it names a model directory, reads what model that is.
/// Errors: all problems in one Error, a line each, with file and line; see read_yaml.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides,
                   std::optional<int64_t> ranks = {}, ModelFiles files = ModelFiles::weights);

/// The same without a look at the model directory that the recipe may name: `model` is then not filled in.
Recipe read_recipe(const std::string& path, const std::vector<std::string>& overrides = {},
                   std::optional<int64_t> ranks = {});

/// The recipe with every default written out, as YAML that load_recipe reads back to the same.
std::string dump_recipe(const Recipe& recipe);

}  // namespace osprey
