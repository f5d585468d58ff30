#pragma once
// The console line of a run: one rewritten line on a terminal, plain lines every few seconds elsewhere.

#include <cstdint>
#include <optional>
#include <string>

namespace osprey {

/// What one finished step has to say.
struct ProgressSample {
  int64_t step = 0, steps = 0;         // finished so far, and in all
  double loss = 0;                     // nats per token
  double grad_norm = 0;                // before clipping
  double tokens_per_second = 0;        // over all ranks
  std::optional<double> gemm_percent;  // of the machine's measured bf16 GEMM rate
  std::optional<double> seconds_left;
  int64_t skipped_updates = 0;
};

/// "1,234,567".
std::string grouped(int64_t n);
/// "step 1,200/4,000 | loss 3.1416 | ...", cut to `columns` characters; 0: not cut.
std::string progress_text(const ProgressSample& sample, int columns);
/// "2 h 05 min", "3 min 20 s", "45 s".
std::string duration_text(double seconds);

/// Time left from the recent rate: a moving window of steps, without the first step of the process
/// (which warms caches) so that a slow start does not spoil the guess.
class TimeLeft {
 public:
  /// Call once a step with a monotonic clock; absent until two steps were seen.
  std::optional<double> update(double now_s, int64_t step, int64_t steps);

 private:
  static constexpr int window = 32;
  double times_[window] = {};
  int64_t steps_[window] = {};
  int64_t seen_ = 0;
};

/// Writes progress to a file descriptor (standard error). Only rank 0 makes one.
class Progress {
 public:
  enum class Style { terminal, plain };
  /// Terminal when `descriptor` is one and TERM is not "dumb".
  static Style style_of(int descriptor);

  Progress(int descriptor, Style style, double every_s);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Shows the step: at once on a terminal (at most ten times a second), else when `every_s` went by
  /// since the last line. The first and the last step are always shown.
  void update(const ProgressSample& sample, double now_s);
  /// Prints a line of its own (evaluation, checkpoint) without tearing the progress line.
  void note(const std::string& text);
  /// Ends the rewritten line.
  void finish();

 private:
  void write(const std::string& text);
  int columns() const;
  int descriptor_;
  Style style_;
  double every_s_;
  std::optional<double> shown_s_;
  std::string line_;  // what stands on the terminal now
};

}  // namespace osprey
