#include "launch/checkpoints.h"

#include <set>

#include "kernels/core/random.h"
#include "kernels/device.h"
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

namespace {

/// Beside adapters nothing but they is saved as it trains: the model comes from model.path again. What no
/// adapter changes must be there as the checkpoint has it.
void require_same_base(const Recipe& recipe, const Session& session,
                       const std::filesystem::path& checkpoint) {
  std::set<std::string> changed;
  for (const AdapterNames& a : session.finetuning->adapters())
    changed.insert({a.weight, a.a, a.b, a.magnitude});
  const HubModel hub(checkpoint);
  const ReadParameter read = read_values(hub);
  for (const auto& p : session.params.all()) {
    if (changed.contains(p->name) || p->stored_format) continue;
    const int64_t count = p->matrix() ? p->shape[1] : p->shape.numel();  // a row is enough
    const Tensor here = make_tensor(p->value.data, {count}, p->value.dtype, p->value.device);
    std::vector<float> saved(static_cast<size_t>(count)), loaded(saved.size());
    read(p->name, 0, make_tensor(saved.data(), {count}, DType::f32));
    if (here.dtype == DType::bf16) {
      std::vector<bf16> narrow(saved.size());
      kernels::download(session.queue, narrow.data(), here);
      for (size_t i = 0; i < narrow.size(); ++i) loaded[i] = to_float(narrow[i]);
    } else {
      kernels::download(session.queue, loaded.data(), here);
    }
    require(
        saved == loaded, "checkpoint",
        "{} was trained beside another model than model.path {} holds now ({} differs); name the one that "
        "the run started from",
        checkpoint.string(), recipe.model_path, p->name);
  }
}

}  // namespace

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
  std::function<void(const std::filesystem::path&)> compare_base;
  if (const auto& adapters = session.finetuning->adapters(); !adapters.empty()) {
    compare_base = [&session, recipe](const std::filesystem::path& path) {
      require_same_base(recipe, session, path);
    };
    through = [adapters](ReadParameter read) { return merged(Queue{}, std::move(read), adapters); };
  }
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
                                },
                            .compare_base = std::move(compare_base)},
      trainer);
}

std::optional<int64_t> resume_run(CheckpointHook& hook) {
  const auto state = hook.resume();
  return state ? std::optional(state->step) : std::nullopt;
}

}  // namespace osprey
