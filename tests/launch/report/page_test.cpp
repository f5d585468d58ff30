#include "launch/report/page.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/check.h"
#include "tests/launch/report/example_run.h"
#include "tests/support/temp_dir.h"

namespace osprey::report {
namespace {

using test::TempDir;

std::vector<RunData> two_runs(const TempDir& dir) {
  test::write_example_run(dir / "a", "osp", 64.0);
  test::write_example_run(dir / "b", "adam", 4096.0);
  std::vector<RunData> runs{read_run(dir / "a"), read_run(dir / "b")};
  name_runs(runs);
  return runs;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

/// The JSON that the page's script draws.
nlohmann::json data_of(const std::string& html) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = html.find(open) + open.size();
  return nlohmann::json::parse(html.substr(begin, html.find("</script>", begin) - begin));
}

TEST(Page, HoldsTheNumbersOfTheMetrics) {
  TempDir dir;
  const std::string html = page(two_runs(dir));
  const auto runs = data_of(html)["runs"];
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0]["name"], "osp");
  EXPECT_EQ(runs[1]["train"]["loss"]["y"][1], 8.5);
  EXPECT_TRUE(runs[1]["train"]["loss"]["y"][6].is_null()) << "NaN is a gap";
  EXPECT_EQ(runs[0]["train"]["grad_norm"]["step"][39], 40);
  EXPECT_EQ(runs[0]["train"]["grad_norm"]["tokens"][39], 40 * 128);
  EXPECT_EQ(runs[0]["validation"]["y"], (nlohmann::json{2.25, 2.125}));
  const auto grid = runs[1]["outliers"]["context"]["block_input"]["kurtosis"];
  EXPECT_EQ(grid["step"], (nlohmann::json{10, 20, 30, 40}));
  EXPECT_EQ(grid["layers"], (nlohmann::json{0, 1}));
  EXPECT_EQ(grid["rows"][1], (nlohmann::json{1024.0, 2048.0, 3072.0, 4096.0}));
  EXPECT_EQ(runs[0]["skipped"][0][0], 7);
}

TEST(Page, TheTableShowsTheFinalFiguresOfEveryRun) {
  TempDir dir;
  const std::string html = page(two_runs(dir));
  const auto row = [&](const std::string& label) {
    const size_t at = html.find(">" + label + "</th>");
    EXPECT_NE(at, std::string::npos) << label;
    return html.substr(at, html.find("</tr>", at) - at);
  };
  EXPECT_NE(row("Validation loss").find("<td>2.1250</td>"), std::string::npos);
  EXPECT_NE(row("Training loss").find("<td>8.0250</td>"), std::string::npos);
  EXPECT_NE(row("Perplexity").find("<td>8.373</td>"), std::string::npos);
  EXPECT_NE(row("Perplexity, W4A4").find("<td>12.182</td>"), std::string::npos);
  EXPECT_EQ(html.find("Perplexity, W8A8"), std::string::npos) << "no run was evaluated so";
  EXPECT_NE(row("Parameters").find("<td>123,456</td>"), std::string::npos);
  EXPECT_NE(row("Peak memory").find("<td>3 MiB</td>"), std::string::npos);
  EXPECT_NE(row("Skipped updates").find("<td>1</td>"), std::string::npos);
  EXPECT_NE(row("Kurtosis, block input, in context").find("<td>32.00</td><td>2048.00</td>"),
            std::string::npos);
  EXPECT_NE(row("Kurtosis, block input, OSP protocol").find("<td>3.50</td>"), std::string::npos);
  EXPECT_NE(row("Largest |x|, block input, in context").find("<td>17.25</td>"), std::string::npos);
}

TEST(Page, OnlyDifferingRecipeKeysStandOnTop) {
  TempDir dir;
  const std::string html = page(two_runs(dir));
  const size_t top = html.find("Keys that differ (2)"), all = html.find("All 3 keys");
  ASSERT_NE(top, std::string::npos);
  ASSERT_NE(all, std::string::npos);
  const std::string differing = html.substr(top, all - top);
  EXPECT_NE(differing.find("model.norm"), std::string::npos);
  EXPECT_NE(differing.find("rmsnorm"), std::string::npos);
  EXPECT_EQ(differing.find("model.layers"), std::string::npos);
  EXPECT_NE(html.find("model.layers", all), std::string::npos);
}

TEST(Page, NeedsNoNetworkAndForbidsItself) {
  TempDir dir;
  const std::string html = page(two_runs(dir));
  for (const char* never : {"http:", "https:", "//cdn", "@import", "src=", "href=", "url(", "fetch(",
                            "XMLHttpRequest", "eval(", "innerHTML"})
    EXPECT_EQ(html.find(never), std::string::npos) << never;
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  EXPECT_NE(html.find("prefers-color-scheme:dark"), std::string::npos);
}

TEST(Page, HostileStringsStayText) {
  const std::string evil =
      "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&<!--\xE2\x80\xA8\xFF\x01";
  TempDir dir;
  std::filesystem::create_directories(dir / "run");
  {
    MetricsLog log(dir / "run" / "metrics.jsonl", {});
    log.write(MetricsEntry("train", 1, 1).add("loss", 1.0));
    log.write(MetricsEntry("skipped_update", 1, 1).add("reason", evil));
    log.write(MetricsEntry("eval", 1, 1).add("loss", 1.0).add("quantization", evil));
    log.write(MetricsEntry("outliers", 1, 1)
                  .add("protocol", evil)
                  .add("tensor", evil)
                  .add("layer", 0)
                  .add("kurtosis", 1.0));
    log.write(MetricsEntry("outliers", 1, 1)
                  .add("protocol", "__proto__")
                  .add("tensor", "constructor")
                  .add("layer", 0)
                  .add("kurtosis", 1.0));
  }
  RunData run = read_run(dir / "run");
  run.name = evil;
  run.dir = evil;
  run.recipe = {{evil, evil}, {"run.name", evil}};
  run.summary = {{"status", evil}};
  run.notes = {evil};
  RunData other = run;
  other.recipe[0].second = "other";
  const std::string html = page({run, other});
  EXPECT_EQ(count(html, "<script"), 2u) << "the data and the code, nothing else";
  EXPECT_EQ(count(html, "</script"), 2u);
  EXPECT_EQ(html.find("<img"), std::string::npos);
  EXPECT_EQ(html.find("<!--"), std::string::npos);
  EXPECT_EQ(html.find("title=\"\"&"), std::string::npos);
  EXPECT_NE(html.find("&lt;/script&gt;&lt;script&gt;alert(1)"), std::string::npos)
      << "shown as it is written";
  EXPECT_NO_THROW(data_of(html));
}

TEST(Page, EscapesTheFiveCharactersAndRepairsBytesThatAreNoText) {
  EXPECT_EQ(escape_html("<a href=\"x\">'&'</a>"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  EXPECT_EQ(escape_html("\xC3\xA9\xFF"), "\xC3\xA9\xEF\xBF\xBD");
}

TEST(Page, ARunWithoutEntriesStillMakesAPage) {
  TempDir dir;
  test::write_text(dir / "recipe.yaml", "run: {name: empty}\n");
  std::vector<RunData> runs{read_run(dir.path())};
  name_runs(runs);
  const std::string html = page(runs);
  EXPECT_NE(html.find("there is no metrics.jsonl"), std::string::npos);
  EXPECT_NE(html.find("All 1 keys"), std::string::npos);
}

}  // namespace
}  // namespace osprey::report
