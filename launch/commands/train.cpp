#include <csignal>
#include <filesystem>
#include <memory>

#include "launch/checkpoints.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/session.h"
#include "launch/together.h"

namespace osprey {

namespace {

struct Options {
  std::string recipe;
  std::vector<std::string> overrides;
};

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int) { Trainer::request_stop(); };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
}

void train(const Options& options, Communicator& world) {
  Recipe recipe;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Loader> loader;
  std::unique_ptr<ValidationLoader> validation;
  std::unique_ptr<Session> session;
  together(world, [&] { recipe = load_recipe(options.recipe, options.overrides, world.size()); });
  const int threads = threads_for_rank(recipe.run, world);
  together(world, [&] {
    const Queue queue{.device = device_for(recipe.run), .threads = threads};
    tokenizer = load_tokenizer(recipe.data.tokenizer);
    const int64_t rows = recipe.train.global_batch_tokens / recipe.data.sequence_len;
    loader = std::make_unique<Loader>(recipe.data, *tokenizer,
                                      Loader::Setup{.seed = static_cast<uint64_t>(recipe.run.seed), .global_rows = rows,
                                                    .vocab_size = recipe.model.vocab_size});
    if (!recipe.data.validation.empty())
      validation = std::make_unique<ValidationLoader>(recipe.data, *tokenizer, recipe.model.vocab_size);
    int64_t activation_bytes = 0;
    for (const MemoryCategory& c : plan_memory(recipe, world.rank(), world.size(), threads))
      if (c.name == "activations") activation_bytes = c.bytes;
    session = std::make_unique<Session>(recipe, world, queue, activation_bytes + (int64_t{64} << 20));
  });
  const std::unique_ptr<RunLock> lock = lock_run(recipe, world);
  session->initialize();

  TrainSource train_source(*loader, world);
  std::unique_ptr<ValidationSource> validation_source;
  TrainerParts parts = session->parts();
  parts.train = &train_source;
  if (validation) {
    validation_source = std::make_unique<ValidationSource>(*validation, world);
    parts.validation = validation_source.get();
    parts.validation_sequences = validation->rows();
  }
  Trainer trainer(recipe.train, parts);
  const auto saver = make_checkpoint_hook(recipe, tokenizer, trainer, [&](const SaveReport& r) {
    if (world.rank() == 0 && r.failure) fmt::print(stderr, "checkpoint of step {} failed: {}\n", r.step, *r.failure);
  });
  const std::optional<int64_t> resumed = resume_run(*saver, world);
  trainer.add_hook(saver.get());
  stop_on_signals();
  trainer.run(resumed.value_or(0));
}

}  // namespace

void add_train(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "train a model as a recipe says; also under mpirun");
  command->add_option("recipe", options->recipe, "the recipe, a YAML file")->required();
  command->add_option("--set", options->overrides, "key.path=value, instead of what the recipe says; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  command->footer("Example:\n  mpirun -np 2 osprey train recipes/quickstart/osp.yaml --set train.steps=100");
  command->callback([options] { on_all_ranks([&](Communicator& world) { train(*options, world); }); });
}

}  // namespace osprey
