#include "launch/report/run_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"
#include "launch/report/page.h"
#include "tests/launch/report/example_run.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey::report {
namespace {

using test::TempDir;
using test::write_text;

bool has_note(const RunData& run, const std::string& part) {
  return std::any_of(run.notes.begin(), run.notes.end(),
                     [&](const std::string& n) { return n.find(part) != std::string::npos; });
}

TEST(RunData, ReadsCurvesOutliersRecipeAndSummary) {
  TempDir dir;
  test::write_example_run(dir / "run", "osp", 64.0);
  const RunData run = read_run(dir / "run");
  EXPECT_TRUE(run.notes.empty()) << run.notes[0];
  EXPECT_EQ(run.bad_lines, 0);
  EXPECT_EQ(run.step, 40);
  EXPECT_EQ(run.tokens, 40 * 128);
  EXPECT_EQ(run.train.at("loss").values.size(), 40u);
  EXPECT_TRUE(std::isnan(run.train.at("loss").values[6]));
  EXPECT_EQ(run.train.at("gemm_percent").values.back(), 70.25);
  EXPECT_EQ(run.validation.values, (std::vector<double>{2.25, 2.125}));
  EXPECT_EQ(run.eval_loss.at("w4a4"), 2.5);
  EXPECT_EQ(run.outliers.at({"context", "block_input", "kurtosis"}).at(1).values,
            (std::vector<double>{16, 32, 48, 64}));
  EXPECT_EQ(run.skipped, (std::vector<std::pair<int64_t, std::string>>{{7, "loss is nan"}}));
  EXPECT_EQ(run.recipe, (std::vector<std::pair<std::string, std::string>>{
                            {"run.name", "osp"}, {"model.layers", "2"}, {"model.norm", "ssnorm"}}));
  EXPECT_EQ(run.summary.at("memory_peak_bytes.activations"), "2097152");
  EXPECT_EQ(run.summary.at("hosts.0.name"), "one");
}

TEST(RunData, EvaluationsAfterwardsAreNotTheRunsOwn) {
  TempDir dir;
  const auto line = [](int step, double loss, const std::string& quantization, const std::string& more) {
    return fmt::format(
        "{{\"event\":\"eval\",\"step\":{},\"tokens\":{},\"loss\":{},\"quantization\":\"{}\"{}}}\n", step,
        step * 8, loss, quantization, more);
  };
  const std::string by_eval = ",\"source\":\"eval\"";
  write_text(dir / "metrics.jsonl", line(10, 3, "none", "") + line(20, 2, "none", "") +
                                        line(20, 2.0625, "none", by_eval) + line(20, 2.25, "w8a8", by_eval) +
                                        line(20, 2.5, "w4a4", by_eval) + line(20, 2.375, "w8a8", by_eval) +
                                        line(10, 4, "none", by_eval) + line(10, 4.25, "w8a8", by_eval) +
                                        line(20, 9, "none", by_eval + ",\"data\":\"other-*\"") +
                                        line(20, 9, "w4a4", by_eval + ",\"data\":\"other-*\"") +
                                        line(20, 9, "w4a4", by_eval + ",\"sequence_len\":16"));
  const RunData run = read_run(dir.path());
  EXPECT_EQ(run.bad_lines, 0);
  EXPECT_EQ(run.entries, 11);
  EXPECT_EQ(run.validation.values, (std::vector<double>{3, 2}));
  EXPECT_EQ(run.eval_loss, (std::map<std::string, double>{{"none", 2}, {"w8a8", 2.375}, {"w4a4", 2.5}}));
}

TEST(RunData, BrokenLinesAreCountedAndNamedAndTheRestIsRead) {
  TempDir dir;
  write_text(dir / "metrics.jsonl",
             "{\"event\":\"train\",\"step\":1,\"tokens\":8,\"loss\":3}\n"
             "{\"event\":\"train\",\"step\":2,\"tok\n"
             "\n"
             "[1,2]\n"
             "{\"event\":\"train\",\"step\":-3,\"tokens\":8,\"loss\":3}\n"
             "{\"event\":\"train\",\"step\":4,\"tokens\":8}\n"
             "{\"event\":\"outliers\",\"step\":4,\"tokens\":8,\"protocol\":\"osp\",\"tensor\":\"x\","
             "\"layer\":99999999999}\n"
             "{\"event\":\"something new\",\"step\":5,\"tokens\":40}\n"
             "{\"event\":\"train\",\"step\":5,\"tokens\":40,\"loss\":\"Infinity\"}");
  const RunData run = read_run(dir.path());
  EXPECT_EQ(run.bad_lines, 5);
  EXPECT_EQ(run.entries, 3);
  EXPECT_EQ(run.train.at("loss").steps, (std::vector<int64_t>{1, 5}));
  EXPECT_TRUE(std::isnan(run.train.at("loss").values[1])) << "infinity is no point of a curve";
  for (const char* note :
       {"line 2: not JSON", "line 4: no JSON object", "line 5: no step", "line 6: a train entry without loss",
        "line 7: an outliers entry with an impossible layer", "there is no recipe.yaml",
        "there is no summary.json"})
    EXPECT_TRUE(has_note(run, note)) << note;
}

TEST(RunData, TheValidationCurveIsOfTheForwardPassThatTheRunTrains) {
  TempDir dir;
  write_text(dir / "metrics.jsonl",
             "{\"event\":\"eval\",\"step\":1,\"tokens\":8,\"loss\":3,\"quantization\":\"none\"}\n"
             "{\"event\":\"eval\",\"step\":2,\"tokens\":16,\"loss\":2.5,\"quantization\":\"as trained\"}\n"
             "{\"event\":\"eval\",\"step\":2,\"tokens\":16,\"loss\":2,\"quantization\":\"w4a4\"}\n");
  const RunData run = read_run(dir.path());
  EXPECT_EQ(run.validation.values, (std::vector<double>{3, 2.5}));
  EXPECT_EQ(run.eval_loss.at("as trained"), 2.5);
}

TEST(RunData, ManyBrokenLinesAreSummedUp) {
  TempDir dir;
  std::string text;
  for (int i = 0; i < 500; ++i) text += "nonsense\n";
  write_text(dir / "metrics.jsonl", text);
  const RunData run = read_run(dir.path());
  EXPECT_EQ(run.bad_lines, 500);
  EXPECT_LT(run.notes.size(), 15u);
  EXPECT_TRUE(has_note(run, "500 lines skipped in all"));
  EXPECT_TRUE(has_note(run, "holds no entries yet"));
}

TEST(RunData, AFolderThatIsNoRunIsAnErrorThatNamesIt) {
  TempDir dir;
  for (const auto& path : {dir.path(), dir / "missing"}) {
    try {
      read_run(path);
      FAIL();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(path.string()), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("osprey train"), std::string::npos) << e.what();
    }
  }
}

TEST(RunData, BrokenRecipesAndSummariesAreNotes) {
  TempDir dir;
  write_text(dir / "metrics.jsonl", "");
  write_text(dir / "recipe.yaml", "a: [1, 2\nb: &x 3");
  write_text(dir / "summary.json", std::string(100000, '['));
  const RunData run = read_run(dir.path());
  EXPECT_TRUE(has_note(run, "recipe.yaml is not read"));
  EXPECT_TRUE(has_note(run, "summary.json is not a JSON object"));
}

TEST(RunData, RunsOfOneNameAreToldApartByTheirFolders) {
  std::vector<RunData> runs(4);
  const char* dirs[] = {"a/one", "b/one", "c/two", "c/two"};
  for (size_t i = 0; i < runs.size(); ++i) runs[i].dir = dirs[i];
  runs[2].recipe = runs[3].recipe = {{"run.name", "same"}};
  name_runs(runs);
  EXPECT_EQ(runs[0].name, "one (a/one)");
  EXPECT_EQ(runs[1].name, "one (b/one)");
  EXPECT_EQ(runs[2].name, "same (c/two)");
  EXPECT_NE(runs[3].name, runs[2].name);
}

TEST(RunData, ThinningKeepsSpikesGapsAndTheLastPoint) {
  Curve curve;
  for (int64_t i = 0; i < 100000; ++i)
    curve.add(i, i * 2, i == 77777 ? 1e6 : i == 5 ? -1e6 : i == 40000 ? std::nan("") : 1.0);
  const Curve thin = thinned(curve, 1000);
  EXPECT_LE(thin.steps.size(), 1600u);
  EXPECT_TRUE(std::is_sorted(thin.steps.begin(), thin.steps.end()));
  EXPECT_EQ(*std::max_element(thin.values.begin(), thin.values.end(),
                              [](double a, double b) { return std::isnan(a) || a < b; }),
            1e6);
  EXPECT_NE(std::find(thin.steps.begin(), thin.steps.end(), 77777), thin.steps.end());
  EXPECT_NE(std::find(thin.steps.begin(), thin.steps.end(), 5), thin.steps.end());
  EXPECT_NE(std::find(thin.steps.begin(), thin.steps.end(), 40000), thin.steps.end());
  EXPECT_EQ(thin.steps.back(), 99999);
  EXPECT_EQ(thinned(curve, 200000).values.size(), 100000u);
}

TEST(RunData, AnyBytesInTheFilesGiveNotesAndAPageNeverACrash) {
  TempDir dir;
  test::write_example_run(dir / "run", "osp", 64.0);
  const auto read_all = [](const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string metrics = read_all(dir / "run" / "metrics.jsonl");
  // Seeds small enough that a mutation hits something: the first lines, and the two small files.
  const std::vector<std::string> seeds{metrics.substr(0, 700), metrics.substr(metrics.size() - 700),
                                       read_all(dir / "run" / "summary.json"),
                                       read_all(dir / "run" / "recipe.yaml")};
  const auto count = test::fuzz(
      seeds,
      {"{", "[[", "\"step\":", "1e999", "-1", "99999999999999999999", "null", "NaN", "</script>", "\n", ": "},
      [&](const std::string& input) {
        for (const char* name : {"metrics.jsonl", "summary.json", "recipe.yaml"})
          test::write_text(dir / "run" / name, input);
        std::vector<RunData> runs{read_run(dir / "run")};
        name_runs(runs);
        const std::string html = page(runs);
        EXPECT_EQ(html.find("</script>", html.find("</script>") + 1), html.rfind("</script>"));
      });
  EXPECT_GT(count.accepted, 10);
}

}  // namespace
}  // namespace osprey::report
