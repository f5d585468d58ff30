#include "launch/report/quantization_part.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "framework/telemetry/metrics_log.h"
#include "launch/report/page.h"
#include "tests/launch/report/example_run.h"
#include "tests/support/temp_dir.h"

namespace osprey::report {
namespace {

using test::TempDir;

/// Three layers of two weights each, at steps 1 and 2; the figures of `layer` are powers of two.
void write_quantized_run(const std::filesystem::path& dir) {
  std::filesystem::create_directories(dir);
  MetricsLog log(dir / "metrics.jsonl", {});
  for (int64_t step = 1; step <= 2; ++step)
    for (int layer = 0; layer < 3; ++layer)
      for (const char* weight : {"attn.q", "mlp.<up>"})
        for (const char* role : {"weights", "gradients"}) {
          const double error =
              (layer == 1 ? 0.25 : 0.0625) * (weight[0] == 'a' ? 1 : 2) / static_cast<double>(step);
          MetricsEntry e("quantization", step, step * 64);
          e.add("role", role).add("layer", layer).add("weight", weight);
          e.add("relative_error", layer == 2 && step == 1 ? std::nan("") : error);
          e.add("clipped", 0.5)
              .add("underflow", layer * 0.125)
              .add("wide_rows_3", 1.0)
              .add("wide_rows_14", 0.0);
          if (role[0] == 'w') e.add("oscillating", 0.0078125).add("frozen", 0.75);
          log.write(e);
        }
}

RunData quantized_run(const TempDir& dir) {
  write_quantized_run(dir / "run");
  RunData run = read_run(dir / "run");
  run.name = "a<b";
  return run;
}

TEST(QuantizationPart, EntriesAreReadByRoleLayerAndWeight) {
  TempDir dir;
  const RunData run = quantized_run(dir);
  EXPECT_EQ(run.bad_lines, 0);
  ASSERT_EQ(run.quantization.size(), 12u);
  const auto& figures = run.quantization.at({"gradients", 1, "mlp.<up>"});
  EXPECT_EQ(figures.at("relative_error").values, (std::vector<double>{0.5, 0.25}));
  EXPECT_EQ(figures.at("clipped").tokens, (std::vector<int64_t>{64, 128}));
  EXPECT_FALSE(figures.contains("oscillating"));
  test::write_text(
      dir / "run" / "metrics.jsonl",
      "{\"event\":\"quantization\",\"step\":1,\"tokens\":8,\"role\":\"weights\",\"layer\":-1,\"weight\":\"x\"}\n"
      "{\"event\":\"quantization\",\"step\":1,\"tokens\":8,\"layer\":1,\"weight\":\"x\"}\n");
  EXPECT_EQ(read_run(dir / "run").bad_lines, 2);
}

TEST(QuantizationPart, CurvesAreTheMeanAndTheWorstLayer) {
  TempDir dir;
  const auto curves = quantization_curves(quantized_run(dir));
  EXPECT_FALSE(curves.contains("activations"));
  const auto& weights = curves["weights"];
  EXPECT_EQ(weights["worst_layer"], 1);
  EXPECT_EQ(weights["layers"], 3);
  EXPECT_EQ(weights["mean"]["step"], (nlohmann::json{1, 2}));
  EXPECT_EQ(weights["mean"]["y"],
            (nlohmann::json{(0.0625 + 0.125 + 0.25 + 0.5) / 4, (0.125 * 1.5 + 0.375) / 6}));
  EXPECT_EQ(weights["worst"]["y"], (nlohmann::json{0.375, 0.1875}));
}

TEST(QuantizationPart, TheTableShowsTheLastMeasurementByLayerAndRole) {
  TempDir dir;
  const std::string html = page({quantized_run(dir)});
  EXPECT_NE(html.find("<h2>Quantization</h2>"), std::string::npos);
  EXPECT_NE(html.find("a&lt;b, last measurement"), std::string::npos);
  EXPECT_NE(html.find("<tr><th scope=\"row\">1</th><td>weights</td><td>0.188</td><td>mlp.&lt;up&gt; 0.25</td>"
                      "<td>0.5</td><td>0.125</td><td>1</td><td>0</td><td>0.00781</td><td>0.75</td></tr>"),
            std::string::npos)
      << html.substr(html.find("<h2>Quantization</h2>"), 3000);
  EXPECT_NE(html.find("<tr><th scope=\"row\">2</th><td>gradients</td><td>0.0469</td>"), std::string::npos);
  EXPECT_EQ(html.find("<up>"), std::string::npos);
}

TEST(QuantizationPart, RunsWithoutEntriesHaveNoSection) {
  TempDir dir;
  test::write_example_run(dir / "run", "osp", 64.0);
  EXPECT_EQ(page({read_run(dir / "run")}).find("<h2>Quantization</h2>"), std::string::npos);
}

}  // namespace
}  // namespace osprey::report
