#include "launch/checkpoints.h"

#include "kernels/core/random.h"
#include "launch/together.h"
#include "models/hf/hub_model.h"

namespace osprey {

std::filesystem::path run_directory(const Recipe& recipe) {
  return std::filesystem::path(recipe.run.output_dir) / recipe.run.name;
}

std::string recipe_hash(const Recipe& recipe) {
  return fmt::format("{:016x}", stream_of(dump_recipe(recipe)));
}

std::unique_ptr<RunLock> lock_run(const Recipe& recipe, Communicator& world) {
  std::unique_ptr<RunLock> lock;
  together(world, [&] {
    if (world.rank() == 0) lock = std::make_unique<RunLock>(run_directory(recipe));
  });
  return lock;
}

std::unique_ptr<CheckpointHook> make_checkpoint_hook(const Recipe& recipe,
                                                     std::shared_ptr<const Tokenizer> tokenizer,
                                                     Trainer& trainer, Session& session,
                                                     std::function<void(const SaveReport&)> on_save,
                                                     const std::string& chat_template) {
  const std::string text = dump_recipe(recipe);
  HubContext context{
      .sequence_len = recipe.data.sequence_len, .dtype = recipe.train.precision, .bos_id = {}, .eos_id = {}};
  if (!recipe.model_path.empty()) {
    context = HubModel(recipe.model_path).context();  // what it says of tokens and lengths stays true
    context.sequence_len = std::max(context.sequence_len, recipe.data.sequence_len);
    context.dtype = recipe.train.precision;
    context.stored_as.reset();
  } else if (tokenizer) {
    context.bos_id = tokenizer->bos_id();
    context.eos_id = tokenizer->eos_id();
  }
  std::function<ReadParameter(ReadParameter)> through;
  if (const auto& adapters = session.finetuning->adapters(); !adapters.empty())
    through = [adapters](ReadParameter read) { return merged(Queue{}, std::move(read), adapters); };
  HubLayout layout = hub_layout(recipe.model, context);
  add_step_sizes(layout, session.params);
  return std::make_unique<CheckpointHook>(
      CheckpointHook::Setup{.spec = recipe.checkpoint,
                            .directory = run_directory(recipe) / "checkpoints",
                            .texts = {text, std::move(layout), std::move(tokenizer), chat_template, through},
                            .recipe_hash = recipe_hash(recipe),
                            .on_save = std::move(on_save),
                            .schemes = session.schemes.get(),
                            .finetuning = session.finetuning.get(),
                            .load_values =
                                [&session](const std::filesystem::path& path) {
                                  HubModel(path).load(session.queue, session.params);
                                }},
      trainer);
}

std::optional<int64_t> resume_run(CheckpointHook& hook) {
  const auto state = hook.resume();
  return state ? std::optional(state->step) : std::nullopt;
}

}  // namespace osprey
