#pragma once
// A few steps op by op, as a Chrome trace: chrome://tracing and Perfetto open it.

#include <filesystem>
#include <string>
#include <vector>

#include "framework/train/trainer.h"
#include "kernels/device.h"

namespace osprey {

/// Watches steps [first, first + count) of this process and writes trace.json, or trace-rank-N.json on ranks
/// but 0. While it watches, steps are not replayed from a recorded one (a graph has no ops), and each is
/// waited for. An op's time runs from the end of the one before it, on the device. Units in the file:
/// microseconds.
class StepTrace final : public StepHook, public Profiler {
 public:
  StepTrace(const Queue& queue, std::filesystem::path directory, int rank, int64_t first, int64_t count);

  void before_step(Trainer& trainer, int64_t step) override;
  bool reads_state(int64_t finished) const override { return watched(finished - 1); }
  /// Errors: throws when the file cannot be written.
  void after_step(Trainer& trainer, const StepResult& result) override;
  void forward(const char* op) override { add(op, "forward"); }
  void backward(const char* op) override { add(op, "backward"); }
  void other(const char* what) override { add(what, "step"); }

  const std::filesystem::path& path() const { return path_; }

 private:
  struct Mark {
    const char* op;
    const char* direction;
    int layer;
  };
  bool watched(int64_t step) const { return first_ <= step && step < first_ + count_; }
  void add(const char* op, const char* direction);

  Queue queue_;
  std::filesystem::path path_;
  int rank_;
  int64_t first_, count_;
  Tape* tape_ = nullptr;  // of the watched step
  kernels::Timeline timeline_;
  std::vector<Mark> marks_;
  double begin_us_ = 0;  // where the next step's ops stand in the file
  std::string events_;
};

}  // namespace osprey
