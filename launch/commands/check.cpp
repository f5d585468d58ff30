#include <cstdio>
#include <memory>
#include <optional>

#include "launch/check_patterns.h"
#include "launch/commands/command.h"
#include "launch/data_source.h"
#include "launch/recipe.h"

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
    for (const std::string& line : check_patterns(recipe)) std::fprintf(stderr, "%s\n", line.c_str());
    std::fputs(dump_recipe(recipe).c_str(), stdout);
  });
}

}  // namespace osprey
