#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

#include "kernels/core/check.h"
#include "launch/commands/command.h"
#include "tests/launch/report/example_run.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::TempDir;

void run_report(std::vector<std::string> args) {
  CLI::App app;
  add_report(app);
  args.insert(args.begin(), "report");
  std::reverse(args.begin(), args.end());
  app.parse(args);
}

std::string read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(ReportCommand, OneRunIsReportedInItsOwnFolder) {
  TempDir dir;
  test::write_example_run(dir / "run", "osp", 64.0);
  run_report({(dir / "run").string()});
  EXPECT_NE(read(dir / "run" / "report.html").find("<title>Osprey report: osp</title>"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "run" / "report.html.partial"));
}

TEST(ReportCommand, SeveralRunsGoWhereTheUserSays) {
  TempDir dir;
  test::write_example_run(dir / "a", "osp", 64.0);
  test::write_example_run(dir / "b", "adam", 4096.0);
  run_report({(dir / "a").string(), (dir / "b").string(), "-o", (dir / "both.html").string()});
  EXPECT_NE(read(dir / "both.html").find("<title>Osprey report: osp, adam</title>"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "a" / "report.html"));
}

TEST(ReportCommand, AFolderThatIsNoRunWritesNothing) {
  TempDir dir;
  test::write_example_run(dir / "a", "osp", 64.0);
  EXPECT_THROW(run_report({(dir / "a").string(), dir.path().string(), "-o", (dir / "both.html").string()}),
               Error);
  EXPECT_FALSE(fs::exists(dir / "both.html"));
}

TEST(ReportCommand, AnUnwritableOutputIsNamed) {
  TempDir dir;
  test::write_example_run(dir / "a", "osp", 64.0);
  try {
    run_report({(dir / "a").string(), "-o", (dir / "missing" / "page.html").string()});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("page.html"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace osprey
