#pragma once
// Learning-rate schedules: pure functions of the step.

#include <cstdint>
#include <optional>

#include "framework/config/fields.h"

namespace osprey {

/// The `schedule` section of a recipe.
struct ScheduleSpec {
  enum class Kind { constant, linear, cosine, wsd };
  enum class Decay { linear, one_minus_sqrt };

  Kind kind = Kind::cosine;
  std::optional<int64_t> warmup_steps;
  std::optional<int64_t> warmup_tokens;
  double min_ratio = 0;
  double decay_fraction = 0.2;
  Decay decay = Decay::linear;

  void fields(Fields& f);
};

/// The factor that every group's peak learning rate is multiplied by.
/// With W warmup steps and N steps in all: step s < W gives (s + 1) / W, so the first step already learns and
/// step W - 1 has the peak. A decay that begins at step S gives shape((s - S) / (N - S)): step S still has
/// the peak, and min_ratio belongs to step N, which is never taken, so that no step is wasted on a rate of
/// zero.
class Schedule {
 public:
  /// Errors: throws when warmup (and for wsd the decay) does not fit into total_steps, naming the numbers.
  Schedule(const ScheduleSpec& spec, int64_t total_steps, int64_t tokens_per_step);

  double multiplier(int64_t step) const;
  int64_t warmup_steps() const { return warmup_; }
  /// The first step of the decay; total_steps when there is none.
  int64_t decay_begin() const { return decay_begin_; }

 private:
  ScheduleSpec spec_;
  int64_t total_, warmup_ = 0, decay_begin_ = 0;
};

}  // namespace osprey
