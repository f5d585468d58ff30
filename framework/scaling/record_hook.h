#pragma once
// Writes a run into scaling.jsonl when it has come to its end.

#include <deque>
#include <filesystem>

#include "framework/scaling/run_record.h"
#include "framework/train/trainer.h"

namespace osprey {

/// Attach it first: the first attached is the last that hears of the end, when the last checkpoint is saved.
/// A run that a signal stops, or that fails, is not recorded. A finished run that is started again trains
/// nothing: it is recorded (after an evaluation) only where its record is missing, so it never stands there
/// twice.
class RecordHook final : public StepHook {
 public:
  /// `known` is what can be told before the run: all but losses and their tokens, and how many steps were
  /// averaged.
  RecordHook(std::filesystem::path file, RunRecord known, Communicator& world);

  bool reads_state(int64_t) const override { return false; }
  void after_step(Trainer& trainer, const StepResult& result) override;
  void after_eval(Trainer& trainer, const EvalResult& result) override;
  /// Collective.
  /// Errors: a file that cannot be written, or whose lines are no records; on rank 0.
  void on_end(Trainer& trainer, const StepResult& result) override;

 private:
  std::filesystem::path file_;
  RunRecord record_;
  Communicator& world_;
  std::deque<double> losses_;  // of the last steps
};

/// How many steps at the end of a run its training loss is averaged over: 2 percent of them, at least 1.
int64_t averaged_steps(int64_t total_steps);

}  // namespace osprey
