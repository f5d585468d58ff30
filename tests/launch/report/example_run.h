#pragma once
// A small run directory for tests of the report.

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>

#include "framework/telemetry/metrics_log.h"

namespace osprey::test {

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

/// 40 steps of 128 tokens with two layers of outliers every 10 steps; figures are powers of two, so they
/// appear in the page as they were written. `kurtosis` is the last one of block_input in layer 1.
inline void write_example_run(const std::filesystem::path& dir, const std::string& name, double kurtosis) {
  std::filesystem::create_directories(dir);
  MetricsLog log(dir / "metrics.jsonl", {});
  log.write(MetricsEntry("start", 0, 0).add("ranks", 2));
  for (int64_t step = 1; step <= 40; ++step) {
    log.write(MetricsEntry("train", step, step * 128)
                  .add("loss", step == 7 ? std::nan("") : 8.0 + 1.0 / static_cast<double>(step))
                  .add("grad_norm", 0.015625 * static_cast<double>(step))
                  .add("learning_rate", 0.000244140625)
                  .add("tokens_per_second", 4321.5)
                  .add("gemm_percent", 70.25));
    if (step == 7) log.write(MetricsEntry("skipped_update", step, step * 128).add("reason", "loss is nan"));
    if (step % 20 == 0)
      log.write(MetricsEntry("eval", step, step * 128).add("loss", 2.0 + 5.0 / static_cast<double>(step)));
    if (step % 10 != 0) continue;
    for (const char* protocol : {"context", "osp"})
      for (int layer = 0; layer < 2; ++layer)
        log.write(MetricsEntry("outliers", step, step * 128)
                      .add("protocol", protocol)
                      .add("tensor", "block_input")
                      .add("layer", layer)
                      .add("osp_kurtosis", 3.5)
                      .add("kurtosis", layer * kurtosis * static_cast<double>(step) / 40.0)
                      .add("max_abs", 17.25));
  }
  log.write(MetricsEntry("eval", 40, 40 * 128).add("loss", 2.5).add("quantization", "w4a4"));
  write_text(dir / "recipe.yaml", "run:\n  name: " + name + "\nmodel:\n  layers: 2\n  norm: " +
                                      (kurtosis > 100 ? "rmsnorm" : "ssnorm") + "\n");
  write_text(
      dir / "summary.json",
      R"({"status": "finished", "parameters": 123456, "wall_s": 12.5, "memory_peak_bytes": {"parameters": 1048576, "activations": 2097152}, "hosts": [{"name": "one"}]})");
}

}  // namespace osprey::test
