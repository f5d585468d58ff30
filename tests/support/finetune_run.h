#pragma once
// Fine-tuning runs in one process, with checkpoints, on synthetic tokens.

#include <string>
#include <utility>
#include <vector>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace osprey::test {

using Overrides = std::vector<std::string>;

/// A four-layer model that any method trains, by AdamW; `method` is the `finetune` section.
Recipe finetune_recipe(const std::string& method, Overrides more = {}, int64_t ranks = 1);

struct Outcome {
  std::vector<double> losses;
  std::vector<std::vector<double>> parameters;  // at the end, in the store's order; packed: empty
};

/// What a rank of `osprey train` does: it goes on from the newest checkpoint of the run, and saves.
Outcome train_with_checkpoints(const Recipe& recipe, Communicator& world);

/// To each of the stages in turn, in processes of their own as it were: (ranks, steps).
Outcome train_in_stages(const std::string& method, Overrides overrides,
                        const std::vector<std::pair<int, int64_t>>& stages);

/// A checkpoint of a short run, as a directory that fine-tuning may start from.
std::string model_directory(const TempDir& folder);
/// What a recipe needs to start from it, in fp32.
Overrides from_directory(const std::string& path);

}  // namespace osprey::test
