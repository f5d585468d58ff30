#include <cstdio>
#include <memory>

#include "framework/config/manual.h"
#include "launch/commands/command.h"
#include "launch/recipe.h"

namespace osprey {

void add_fields(CLI::App& app) {
  struct Options {
    std::string key;
    std::string format = "text";
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("fields", "the manual of every recipe key: type, default, limits, meaning");
  command->add_option("key", options->key,
                      "only this key or section, such as optim.learning_rate or attention");
  command->add_flag_callback(
      "--markdown", [options] { options->format = "markdown"; }, "as Markdown tables");
  command->footer("Example:\n  osprey fields model.attention");
  command->callback([options] {
    std::vector<ManualEntry> entries = manual_of<Recipe>();
    if (!options->key.empty()) entries = select(entries, options->key);
    std::fputs((options->format == "markdown" ? manual_markdown(entries) : manual_text(entries)).c_str(),
               stdout);
  });
}

}  // namespace osprey
