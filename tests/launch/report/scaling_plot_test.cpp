#include "launch/report/scaling_plot.h"

#include <gtest/gtest.h>

#include "tests/framework/scaling/synthetic.h"

namespace osprey {
namespace {

using namespace test;

int64_t count(const std::string& text, const std::string& what) {
  int64_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

std::string plot(const Law& law, const std::vector<double>& natural, std::vector<LawPoint> points) {
  measure(law, natural, points, 1e-4);
  points.front().run = "<b> & \"x\"";
  return report::scaling_svg(fit_law(law, points, {.fixed = {}, .bootstrap = 0, .seed = 0}));
}

TEST(ScalingPlot, LossesHaveACurveForEachSizeAndGroupAndAMarkForEachRun) {
  std::vector<double> natural = hoffmann;
  natural.push_back(1.4);
  std::vector<LawPoint> points = grid(many_sizes, many_tokens);
  append(points, grid({1e8, 1e9}, {1e9, 1e10}, 1));
  const std::string svg = plot(Law::per_optimizer({"adamw", "<muon>"}), natural, points);
  EXPECT_EQ(count(svg, "<title>"), 34 + 2);  // runs, and marks of the legend
  EXPECT_EQ(count(svg, "<polyline"), 8 + 6 + 2);
  EXPECT_EQ(count(svg, "<b>"), 0);
  EXPECT_EQ(count(svg, "&lt;b&gt; &amp; &quot;x&quot;"), 1);
  EXPECT_EQ(count(svg, "&lt;muon&gt;"), 2);
  EXPECT_EQ(count(svg, "nan"), 0);
  EXPECT_EQ(count(svg, "inf"), 0);
}

TEST(ScalingPlot, DifferencesStandAgainstWhatWasPredicted) {
  const std::string svg = plot(Law::qat(), chen, qat_grid());
  EXPECT_EQ(count(svg, "<title>"), 64 + 4);
  EXPECT_NE(svg.find("predicted delta, nats per token"), std::string::npos);
  EXPECT_EQ(count(svg, "nan"), 0);
}

}  // namespace
}  // namespace osprey
