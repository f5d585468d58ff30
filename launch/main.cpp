// osprey: one program, one subcommand for each thing a user does. The only place that exits.

#include <cstdio>
#include <exception>

#include "launch/commands/command.h"
#include "launch/together.h"

namespace {

int run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"osprey trains language models that stay easy to quantize"};
  app.require_subcommand(1);
  app.set_version_flag("--version", OSPREY_VERSION);
  osprey::add_train(app);
  osprey::add_check(app);
  osprey::add_plan(app);
  osprey::add_prepare(app);
  osprey::add_eval(app);
  osprey::add_inspect(app);
  osprey::add_generate(app);
  osprey::add_export(app);
  osprey::add_report(app);
  osprey::add_fields(app);
  osprey::add_bench(app);
  try {
    return run(app, argc, argv);
  } catch (const osprey::Reported&) {
    return 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "osprey: %s\n", e.what());
    return 1;
  }
}
