#pragma once
// Everything a run says about itself, as one step hook: metrics.jsonl, tensorboard/, the console line,
// measurements of outliers and quantization, and summary.json.

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "framework/telemetry/metrics_log.h"
#include "framework/telemetry/outlier_observer.h"
#include "framework/telemetry/progress.h"
#include "framework/telemetry/quantization_observer.h"
#include "framework/telemetry/summary.h"
#include "framework/telemetry/tfevents.h"
#include "framework/train/trainer.h"

namespace osprey {

struct RunWatchOptions {
  std::filesystem::path directory;  // of the run
  std::string name, version, isa;
  std::string gpu = {};  // what computes, if it is no CPU
  TelemetrySpec telemetry;
  std::optional<int64_t> resumed_step;                // of the checkpoint the run goes on from
  std::vector<WeightInFormat> followed_weights = {};  // whose oscillation is wanted, on rank 0
  double learning_rate = 1;                     // of the first optimizer group, at a schedule factor of 1
  std::optional<double> gemm_flops_per_second;  // over all ranks, see gemm_rate.h
  std::function<std::map<std::string, int64_t>()> memory_bytes;  // this rank's high-water marks by category
  int progress_descriptor = 2;
};

/// Made on every rank: figures of outliers and quantization are summed over ranks. Files and the console
/// belong to rank 0. A run that is never told on_end leaves "failed" in summary.json when it is destroyed,
/// and "running" when it is killed. A disk that fills up ends no run for what is written here: lines wait,
/// and the console says so.
class RunWatch final : public StepHook {
 public:
  /// Errors: throws when the directory cannot be written.
  RunWatch(RunWatchOptions options, Communicator& world, const Queue& queue);
  ~RunWatch() override;

  void on_start(Trainer& trainer) override;
  void before_step(Trainer& trainer, int64_t step) override;
  bool reads_state(int64_t finished) const override;
  void after_step(Trainer& trainer, const StepResult& result) override;
  void after_eval(Trainer& trainer, const EvalResult& result) override;
  void on_end(Trainer& trainer, const StepResult& result) override;

  /// A save came to an end: `path` has become visible, or `failure` says why not. Ranks but 0 ignore it.
  /// Units: the loop waited blocked_ms, the background thread took write_ms.
  void checkpoint(int64_t step, const std::string& path, const std::optional<std::string>& failure,
                  double blocked_ms, double write_ms);
  /// An event of somebody else, into metrics.jsonl. Ranks but 0 ignore it.
  void write(const MetricsEntry& entry);
  /// A line for people, above the progress line; from rank 0.
  void note(const std::string& text);

 private:
  void measure_outliers(Trainer& trainer, int64_t step, int64_t tokens);
  void write_quantization(int64_t step, int64_t tokens);
  void write_train(const StepResult& result);
  void save_summary();

  RunWatchOptions options_;
  Communicator& world_;
  Queue queue_;
  OutlierObserver observer_;
  std::unique_ptr<OscillationTracker> oscillation_;
  std::unique_ptr<QuantizationObserver> quantization_;  // from the first step on that quantizes
  int64_t quantization_step_ = -1;                      // steps finished when the measured one is
  bool first_quantized_ = true;                         // the next step that quantizes is the run's first
  std::unique_ptr<MetricsLog> log_;
  std::unique_ptr<TfEventsWriter> events_;
  std::unique_ptr<Progress> progress_;
  TimeLeft left_;
  RunSummary summary_;
  double start_s_ = 0;
  double flops_per_token_ = 0, step_tokens_ = 0;
  double counted_s_ = 0, counted_tokens_ = 0;  // without the first step of this process
  bool first_step_ = true, started_ = false, ended_ = false;
};

}  // namespace osprey
