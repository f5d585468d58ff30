#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/core/check.h"

namespace osprey {

void ScheduleSpec::fields(Fields& f) {
  f.choice(
      "kind", kind,
      {{"constant", Kind::constant}, {"linear", Kind::linear}, {"cosine", Kind::cosine}, {"wsd", Kind::wsd}},
      "what follows the warmup: no decay, a decay over all remaining steps, or (wsd) a plateau and a decay "
      "over the last decay_fraction");
  f("warmup_steps", warmup_steps, "steps over which the rate rises from 1/N of its peak to the peak",
    at_least(0));
  f("warmup_tokens", warmup_tokens, "the same in tokens, rounded up to whole steps", at_least(0));
  f.rule(!warmup_steps || !warmup_tokens, "warmup_tokens", "and warmup_steps are both given; keep one");
  f.when(kind != Kind::constant, "kind is linear, cosine or wsd",
         [&] { f("min_ratio", min_ratio, "share of the peak rate at which the decay ends", between(0, 1)); });
  f.when(kind == Kind::wsd, "kind is wsd", [&] {
    f("decay_fraction", decay_fraction, "share of all steps spent decaying", between(0, 1));
    f.choice("decay", decay, {{"linear", Decay::linear}, {"one_minus_sqrt", Decay::one_minus_sqrt}},
             "shape of the decay; one_minus_sqrt falls fast first");
  });
}

Schedule::Schedule(const ScheduleSpec& spec, int64_t total_steps, int64_t tokens_per_step)
    : spec_(spec), total_(total_steps) {
  require(total_steps >= 1, "schedule", "there must be at least one step, got {}", total_steps);
  require(tokens_per_step >= 1, "schedule", "a step must have at least one token, got {}", tokens_per_step);
  require(!spec.warmup_steps || !spec.warmup_tokens, "schedule",
          "warmup_tokens and warmup_steps are both given; keep one");
  if (spec.warmup_steps) warmup_ = *spec.warmup_steps;
  if (spec.warmup_tokens)
    warmup_ = *spec.warmup_tokens / tokens_per_step + (*spec.warmup_tokens % tokens_per_step > 0);
  require(0 <= warmup_ && warmup_ <= total_steps, "schedule",
          "the warmup has {} steps, the run only {}; shorten the warmup or train longer", warmup_,
          total_steps);
  switch (spec.kind) {
    case ScheduleSpec::Kind::constant:
      decay_begin_ = total_steps;
      break;
    case ScheduleSpec::Kind::linear:
    case ScheduleSpec::Kind::cosine:
      decay_begin_ = warmup_;
      break;
    case ScheduleSpec::Kind::wsd: {
      const auto decay =
          static_cast<int64_t>(std::llround(spec.decay_fraction * static_cast<double>(total_steps)));
      require(warmup_ + decay <= total_steps, "schedule",
              "warmup ({} steps) and decay ({} steps) do not fit into {} steps; shorten one of them", warmup_,
              decay, total_steps);
      decay_begin_ = total_steps - decay;
      break;
    }
  }
}

double Schedule::multiplier(int64_t step) const {
  if (step < warmup_) return static_cast<double>(step + 1) / static_cast<double>(warmup_);
  if (step < decay_begin_) return 1;
  const double x = std::min(1.0, static_cast<double>(step - decay_begin_) /
                                     static_cast<double>(std::max<int64_t>(1, total_ - decay_begin_)));
  double left = 1;  // share of the way still to fall
  switch (spec_.kind) {
    case ScheduleSpec::Kind::constant:
      return 1;
    case ScheduleSpec::Kind::linear:
      left = 1 - x;
      break;
    case ScheduleSpec::Kind::cosine:
      left = 0.5 * (1 + std::cos(std::numbers::pi * x));
      break;
    case ScheduleSpec::Kind::wsd:
      left = spec_.decay == ScheduleSpec::Decay::linear ? 1 - x : 1 - std::sqrt(x);
      break;
  }
  return spec_.min_ratio + (1 - spec_.min_ratio) * left;
}

}  // namespace osprey
