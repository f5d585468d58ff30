#pragma once
// The data of a recipe, and loaders as the trainer wants them.

#include <memory>
#include <string>
#include <vector>

#include "framework/data/loader.h"
#include "framework/train/trainer.h"
#include "launch/recipe.h"

namespace osprey {

/// What a run reads: token shards or instruction data.
struct RunData {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<TrainingData> train;
  std::unique_ptr<ValidationData> validation;  // null without
  std::string chat_template;                   // Jinja that conversations were written with; empty: none
  std::vector<std::string> notes;              // lines for people: what was read, and what was left out
};

/// Opens the data of a recipe. Where the recipe gives its length in epochs, fills in the steps that they come
/// to. Not collective: every rank opens all of it, and finds the same errors.
RunData open_data(Recipe& recipe, int threads);

/// For commands that need no data: what of the files that the recipe names is not there yet, as lines for
/// people. Errors: a tokenizer that is damaged, or has more tokens than the model.
std::vector<std::string> check_files(const Recipe& recipe);

/// The first `max_tokens` that evaluation reads, of sources of either kind; null where the spec has none.
std::unique_ptr<ValidationData> open_validation(const DataSpec& spec,
                                                std::shared_ptr<const Tokenizer> tokenizer,
                                                int64_t vocab_size, uint64_t seed, int threads,
                                                int64_t max_tokens);

class TrainSource final : public BatchSource {
 public:
  TrainSource(TrainingData& data, const Communicator& world) : data_(data), world_(world) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override;

 private:
  TrainingData& data_;
  const Communicator& world_;
};

class ValidationSource final : public BatchSource {
 public:
  ValidationSource(ValidationData& data, const Communicator& world) : data_(data), world_(world) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override;

 private:
  ValidationData& data_;
  const Communicator& world_;
};

}  // namespace osprey
