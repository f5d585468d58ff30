// osprey: one program, one subcommand for each thing a user does. The only place that exits.

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "framework/config/reader.h"
#include "framework/parallel/mpi_comm.h"
#include "launch/commands/command.h"
#include "launch/together.h"

namespace {

constexpr int usage_error = 2;

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  return names;
}

/// Why `words` name no command of `app`, or none that can run on several processes; empty when they do.
std::string command_problem(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* at = &app;
  std::string path = "osprey";
  for (const std::string& word : words) {
    const std::vector<std::string> names = commands_of(*at);
    if (names.empty() || word == "-h" || word == "--help" || word == "--version") return "";
    if (std::find(names.begin(), names.end(), word) == names.end()) {
      const std::string close = osprey::nearest(word, names);
      std::string text = fmt::format("{} has no command {}", path, word);
      if (!close.empty()) return text + "; did you mean " + close + "?";
      return fmt::format("{}; there are {}", text, fmt::join(names, ", "));
    }
    path += " " + word;
    at = at->get_subcommand(word);
  }
  const std::vector<std::string> names = commands_of(*at);
  if (names.empty()) return "";
  return fmt::format("{} needs a command: {}", path, fmt::join(names, ", "));
}

/// Prints the error once, also when every process of a job comes here with the same one.
int refuse(const std::string& text) {
  if (osprey::launched_processes() == 1) {
    osprey::print_error("", text);
    return usage_error;
  }
  try {
    osprey::on_all_ranks([&](osprey::Communicator& world) {
      if (world.rank() == 0) osprey::print_error("", text);
      world.barrier();  // a process that ends with a failure ends the others, before they have spoken
      throw osprey::Reported();
    });
  } catch (const osprey::Reported&) {
  }
  return usage_error;
}

int run(CLI::App& app, int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string problem = command_problem(app, words);
  if (!problem.empty()) return refuse(problem + "\nRun with --help for more information.");
  const bool help = std::any_of(words.begin(), words.end(), [](const std::string& word) {
    return word == "-h" || word == "--help" || word == "--version";
  });
  if (!help && osprey::launched_processes() > 1 && words[0] != "train")
    return refuse(fmt::format("osprey {} runs in one process; start it without mpirun", words[0]));
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    return refuse(fmt::format("{}: {}\nRun with --help for more information.", words[0], e.what()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"osprey trains language models that stay easy to quantize"};
  app.require_subcommand(1);
  app.set_version_flag("--version", OSPREY_VERSION);
  app.footer("Example:\n  osprey train recipes/quickstart/osp.yaml");
  osprey::add_train(app);
  osprey::add_check(app);
  osprey::add_plan(app);
  osprey::add_prepare(app);
  osprey::add_data(app);
  osprey::add_eval(app);
  osprey::add_inspect(app);
  osprey::add_generate(app);
  osprey::add_export(app);
  osprey::add_quantize(app);
  osprey::add_report(app);
  osprey::add_fields(app);
  osprey::add_bench(app);
  osprey::add_devices(app);
  osprey::add_scaling(app);
  try {
    return run(app, argc, argv);
  } catch (const osprey::Reported&) {
    return 1;
  } catch (const std::exception& e) {
    osprey::print_error("", e.what());
    return 1;
  }
}
