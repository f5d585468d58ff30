#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "framework/files/file.h"
#include "launch/commands/command.h"
#include "launch/report/page.h"
#include "launch/report/run_data.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;

void report_runs(const std::vector<std::string>& dirs, const std::string& output) {
  std::vector<report::RunData> runs;
  for (const std::string& dir : dirs) runs.push_back(report::read_run(dir));
  report::name_runs(runs);
  fs::path file = output;
  if (output.empty()) file = runs.size() == 1 ? fs::path(dirs[0]) / "report.html" : fs::path("report.html");
  replace_file(file, report::page(runs));
  for (const report::RunData& run : runs)
    for (const std::string& note : run.notes) fmt::print(stderr, "{}: {}\n", run.dir.string(), note);
  fmt::print("wrote {}\n", file.string());
}

}  // namespace

void add_report(CLI::App& app) {
  auto* command =
      app.add_subcommand("report", "write one self-contained HTML page about one or several runs");
  command->footer("Example:\n  osprey report runs/osp runs/adam -o report.html");
  auto dirs = std::make_shared<std::vector<std::string>>();
  auto output = std::make_shared<std::string>();
  command->add_option("RUN", *dirs, "run directories, as osprey train wrote them")->required();
  command->add_option("-o,--output", *output,
                      "where to write; RUN/report.html for one run and ./report.html for several by default");
  command->callback([dirs, output] { report_runs(*dirs, *output); });
}

}  // namespace osprey
