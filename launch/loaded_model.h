#pragma once
// A checkpoint opened for evaluation, inspection or generation.

#include <filesystem>
#include <memory>
#include <string>

#include "framework/data/loader.h"
#include "framework/data/tokenizer.h"
#include "framework/model.h"
#include "framework/quant/scheme.h"
#include "kernels/device.h"
#include "launch/recipe.h"
#include "models/hf/hub_model.h"

namespace osprey {

/// A checkpoint directory, or a run directory whose newest checkpoint is meant.
/// Errors: throws when there is neither.
std::filesystem::path checkpoint_of(const std::filesystem::path& checkpoint_or_run);
/// The run directory that a checkpoint stands in, or an empty path when it stands elsewhere.
std::filesystem::path run_of(const std::filesystem::path& checkpoint);

/// Weights that a checkpoint holds packed stay so, and its layers compute with them as it says.
struct LoadedModel {
  /// Errors: throws when files are damaged, the model is one that Osprey does not compute, or the device is
  /// not there.
  LoadedModel(const std::filesystem::path& checkpoint_or_run, int threads, Device device);

  /// Throws where weights are packed, so that `what` cannot be done; says what to take instead.
  void require_unpacked(const char* what) const;

  std::filesystem::path path;
  HubModel hub;
  kernels::OpenQueue open;
  Queue queue;
  int64_t activation_capacity_bytes;
  std::unique_ptr<LanguageModel> model;
  ParamStore params;
  std::unique_ptr<QuantSchemes> schemes;  // of a packed checkpoint
  Arena activations;
  Pool pool;
  Tape tape;
  std::shared_ptr<const Tokenizer> tokenizer;
};

/// Throws unless a batch of this size can be evaluated in the memory that the device has to spare.
void require_evaluation_memory(const LoadedModel& loaded, int64_t rows, int64_t sequence_len);

/// The first `max_tokens` of the validation data of the checkpoint's recipe, or of the shards or instruction
/// data that `data` names instead. Errors: throws when there is neither, or when the tokenizer does not
/// match.
std::unique_ptr<ValidationData> validation_data(const LoadedModel& loaded,
                                                const std::vector<std::string>& data, int64_t sequence_len,
                                                int64_t max_tokens);

/// Points a recipe's data at the tokenizer and template that its checkpoint carries.
void use_template_of(const std::filesystem::path& checkpoint, DataSpec& spec);

/// Buffers for `rows` sequences of this data: in host memory, where loaders write, and where the model reads.
class StagedBatch {
 public:
  StagedBatch(const Queue& queue, const ValidationData& data, int64_t rows);
  /// Rows `first` and on of the data. Returns the batch as the model reads it.
  const BatchView& fill(ValidationData& data, int64_t first);
  const BatchView& host() const { return host_; }

 private:
  Queue queue_;
  Arena host_memory_, memory_;
  BatchView host_, view_;
};

}  // namespace osprey
