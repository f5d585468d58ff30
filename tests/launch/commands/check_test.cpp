#include <gtest/gtest.h>

#include <fstream>

#include "kernels/core/check.h"
#include "launch/commands/command.h"
#include "tests/support/temp_dir.h"

#include "tests/support/paths.h"

namespace osprey {
namespace {

/// What `osprey ARGUMENTS` prints; Error passes through.
std::string run(const std::string& arguments) {
  CLI::App app;
  app.require_subcommand(1);
  add_check(app);
  add_fields(app);
  testing::internal::CaptureStdout();
  try {
    app.parse(arguments, false);
  } catch (const CLI::CallForHelp&) {
    testing::internal::GetCapturedStdout();
    return app.help();
  } catch (...) {
    testing::internal::GetCapturedStdout();
    throw;
  }
  return testing::internal::GetCapturedStdout();
}

TEST(Check, PrintsTheResolvedRecipeAndAcceptsItsOwnOutput) {
  const std::string recipe = osprey::test::source_dir() + "/recipes/quickstart/osp.yaml";
  const std::string resolved = run("check " + recipe + " --ranks 2 --set model.layers=3");
  EXPECT_NE(resolved.find("\n  layers: 3\n"), std::string::npos) << resolved;
  const test::TempDir folder;
  const std::string copy = (folder / "resolved.yaml").string();
  std::ofstream(copy) << resolved;
  EXPECT_EQ(run("check " + copy), resolved);
}

TEST(Check, WrongRecipesAreErrorsThatNameTheKey) {
  const std::string recipe = osprey::test::source_dir() + "/recipes/quickstart/osp.yaml";
  try {
    run("check " + recipe + " --set model.lyers=3");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("did you mean layers?"), std::string::npos) << e.what();
  }
  EXPECT_THROW(run("check /nonexistent.yaml"), Error);
}

TEST(Check, FieldsPrintsOneSectionOrAll) {
  const std::string all = run("fields"), attention = run("fields model.attention");
  EXPECT_NE(all.find(attention.substr(0, attention.find('\n'))), std::string::npos);
  EXPECT_LT(attention.size(), all.size());
  EXPECT_NE(run("fields --markdown").find("| `model.heads` |"), std::string::npos);
  EXPECT_THROW(run("fields no.such.key"), Error);
}

TEST(Check, HelpShowsAnExample) {
  EXPECT_NE(run("check --help").find("Example:"), std::string::npos);
  EXPECT_NE(run("fields --help").find("Example:"), std::string::npos);
}

}  // namespace
}  // namespace osprey
