#include <cstdio>
#include <memory>
#include <optional>

#include "framework/finetune/finetuning.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/packed_base.h"
#include "launch/recipe.h"
#include "models/make_model.h"
#include "optim/groups.h"

namespace osprey {

void add_check(CLI::App& app) {
  struct Options : RecipeOptions {
    std::optional<int64_t> ranks;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("check", "validate a recipe and print it with every default; nothing is run");
  options->add_to(*command);
  command->add_option("--ranks", options->ranks, "also check that the batch divides over this many ranks")
      ->check(CLI::Range(1, 65536));
  command->footer(
      "Example:\n  osprey check recipes/quickstart/osp.yaml --ranks 2 --set train.micro_batch_size=8");
  command->callback([options] {
    Recipe recipe = load_recipe(options->recipe, options->overrides, options->ranks, ModelFiles::config);
    for (const std::string& line : check_files(recipe)) std::fprintf(stderr, "note: %s\n", line.c_str());
    if (recipe.train.epochs) open_data(recipe, 1);  // the data say how many steps there are
    // Patterns can only be judged against the parameters of this very model.
    ParamStore params;
    make_model(recipe.model, recipe.data.sequence_len)->declare(params);
    const auto base = declare_packed_base(recipe, params);
    const Finetuning finetuning(recipe.finetune, params, static_cast<uint64_t>(recipe.run.seed));
    const QuantSchemes schemes(recipe.quant, params, 0, recipe.train.global_batch_tokens);
    const OptimizerGroups groups(recipe.optim, params, recipe.finetune);
    for (const std::string& warning : groups.warnings()) std::fprintf(stderr, "note: %s\n", warning.c_str());
    if (const std::string packed = packed_base_note(params); !packed.empty())
      std::fprintf(stderr, "%s\n", packed.c_str());
    for (const std::string& line : schemes.timeline(recipe.train.total_steps()))
      std::fprintf(stderr, "%s\n", line.c_str());
    std::fputs(dump_recipe(recipe).c_str(), stdout);
  });
}

}  // namespace osprey
