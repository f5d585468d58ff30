#pragma once
// Whole training runs in one process, on synthetic tokens: ranks are threads.

#include <functional>
#include <string>
#include <vector>

#include "launch/session.h"
#include "tests/support/test_bed.h"

namespace osprey::test {

/// Sequences that are pure functions of (seed, global row): a noisy arithmetic progression modulo the
/// vocabulary, so that a model can learn it. `distinct_steps` steps, then the data repeat.
class SyntheticSource final : public BatchSource {
 public:
  SyntheticSource(int64_t vocabulary, int64_t rank, int64_t ranks, int64_t distinct_steps)
      : vocabulary_(vocabulary), rank_(rank), ranks_(ranks), distinct_steps_(distinct_steps) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override;

 private:
  int64_t vocabulary_, rank_, ranks_, distinct_steps_;
};

/// A 2-layer recipe of width 64, vocabulary 96, 32 tokens, global batch 8 rows; `overrides` as of --set.
Recipe tiny_recipe(const std::vector<std::string>& overrides = {}, int64_t ranks = 1);

struct TinyResult {
  std::vector<double> losses, grad_norms;
  std::vector<std::vector<double>> parameters;  // of rank 0, at the end, in the store's order; packed: empty
  std::vector<MemoryCategory> memory;
  int64_t replayed_steps = 0;
};

/// Runs the recipe on `ranks` threads and returns rank 0's view; throws what any rank threw.
/// `on_step`, if given, is called on every rank after each step; `hook`, if given, makes each rank's last
/// hook. On GPUs each rank takes one of its own.
TinyResult tiny_run(const Recipe& recipe, int ranks = 1, int threads = 1, int64_t distinct_steps = 1 << 20,
                    const std::function<void(Session&, int64_t)>& on_step = {},
                    DeviceKind kind = test_device().kind,
                    const std::function<std::unique_ptr<StepHook>(Session&)>& hook = {});

/// Between elements of the same place. Lists of different lengths fail the test.
double largest_difference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace osprey::test
