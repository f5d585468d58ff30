#include "launch/data_source.h"

#include <algorithm>

#include "framework/data/instruction_data.h"
#include "launch/adapter_files.h"
#include "models/hf/hub_model.h"

namespace osprey {
namespace {

std::shared_ptr<const Tokenizer> open_tokenizer(const Recipe& recipe) {
  std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer(recipe.data.tokenizer);
  require(tokenizer->vocab_size() <= recipe.model.vocab_size, "data.tokenizer",
          "model.vocab_size is {}, but the tokenizer has {} tokens; give at least that",
          recipe.model.vocab_size, tokenizer->vocab_size());
  return tokenizer;
}

RunData open_shards(const Recipe& recipe, int64_t global_rows) {
  RunData data;
  data.tokenizer = open_tokenizer(recipe);
  data.train = std::make_unique<Loader>(recipe.data, *data.tokenizer,
                                        Loader::Setup{.seed = static_cast<uint64_t>(recipe.run.seed),
                                                      .global_rows = global_rows,
                                                      .vocab_size = recipe.model.vocab_size});
  if (!recipe.data.validation.empty())
    data.validation = std::make_unique<ValidationLoader>(recipe.data, *data.tokenizer,
                                                         recipe.model.vocab_size, recipe.train.eval_tokens);
  return data;
}

RunData open_instruction_run(Recipe& recipe, int64_t global_rows, int threads) {
  const auto seed = static_cast<uint64_t>(recipe.run.seed);
  RunData data;
  data.tokenizer = open_tokenizer(recipe);
  const InstructionData read = open_instructions(
      recipe.data, data.tokenizer, {.vocab_size = recipe.model.vocab_size, .seed = seed, .threads = threads});
  data.notes = read.summary();
  data.chat_template = read.chat_template->source();
  // Checkpoints say which template they were trained with.
  const std::vector<std::string> names = template_names();
  if (std::find(names.begin(), names.end(), read.chat_template->name()) != names.end())
    recipe.data.chat_template = read.chat_template->name();
  const int32_t filler = data.tokenizer->eos_id();
  data.train = std::make_unique<InstructionLoader>(
      recipe.data, read.train,
      InstructionLoader::Setup{.seed = seed, .global_rows = global_rows, .filler = filler});
  if (read.validation)
    data.validation = std::make_unique<InstructionValidation>(recipe.data, read.validation, filler,
                                                              recipe.train.eval_tokens);
  return data;
}

}  // namespace

RunData open_data(Recipe& recipe, int threads) {
  const int64_t global_rows = recipe.train.global_batch_tokens / recipe.data.sequence_len;
  RunData data = recipe.data.instructions() ? open_instruction_run(recipe, global_rows, threads)
                                            : open_shards(recipe, global_rows);
  if (recipe.train.epochs) {
    const int64_t rows = data.train->rows(*recipe.train.epochs);
    recipe.train.steps_of_epochs = (rows + global_rows - 1) / global_rows;
    data.notes.push_back(fmt::format("{} epochs are {} sequences, {} steps", *recipe.train.epochs, rows,
                                     recipe.train.steps_of_epochs));
  }
  return data;
}

std::vector<std::string> check_files(const Recipe& recipe) {
  std::vector<std::string> notes;
  if (!recipe.model_path.empty() && !has_weights(recipe.model_path))
    notes.push_back(
        fmt::format("{} holds no weights; config.json says what model it is, and training needs them",
                    recipe.model_path));
  if (!recipe.finetune.adapter.empty()) check_adapter_files(recipe.finetune);
  if (has_tokenizer(recipe.data.tokenizer))
    open_tokenizer(recipe);
  else
    notes.push_back(fmt::format(
        "there is no tokenizer at {} yet, so that its vocabulary is not compared with the model's",
        recipe.data.tokenizer));
  return notes;
}

std::unique_ptr<ValidationData> open_validation(const DataSpec& spec,
                                                std::shared_ptr<const Tokenizer> tokenizer,
                                                int64_t vocab_size, uint64_t seed, int threads,
                                                int64_t max_tokens) {
  const bool instructions =
      !spec.validation.empty() ? spec.validation.front().instructions() : spec.validation_fraction > 0;
  if (!instructions) {
    if (spec.validation.empty()) return nullptr;
    return std::make_unique<ValidationLoader>(spec, *tokenizer, vocab_size, max_tokens);
  }
  const int32_t filler = tokenizer->eos_id();
  const InstructionData read = open_instructions(spec, std::move(tokenizer),
                                                 {.vocab_size = vocab_size,
                                                  .seed = seed,
                                                  .threads = threads,
                                                  .sources = InstructionRequest::Sources::validation});
  return std::make_unique<InstructionValidation>(spec, read.validation, filler, max_tokens);
}

int64_t TrainSource::fill(int64_t step, int64_t micro_step, int64_t, const BatchView& into) {
  return data_.batch(step, micro_step, world_.rank(), world_.size(), into);
}

int64_t ValidationSource::fill(int64_t, int64_t micro_step, int64_t, const BatchView& into) {
  return data_.batch((micro_step * world_.size() + world_.rank()) * into.batch(), into);
}

}  // namespace osprey
