#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "kernels/core/check.h"

namespace osprey {
namespace {

using Kind = ScheduleSpec::Kind;

TEST(Schedule, WarmupStartsAboveZeroAndReachesThePeakOnItsLastStep) {
  for (Kind kind : {Kind::constant, Kind::linear, Kind::cosine, Kind::wsd}) {
    const Schedule s({.kind = kind, .warmup_steps = 10, .warmup_tokens = {}}, 100, 1);
    EXPECT_DOUBLE_EQ(s.multiplier(0), 0.1);
    EXPECT_DOUBLE_EQ(s.multiplier(4), 0.5);
    EXPECT_DOUBLE_EQ(s.multiplier(9), 1);
    EXPECT_DOUBLE_EQ(s.multiplier(10), 1);  // the decay's first step still has the peak
  }
}

TEST(Schedule, DecaysEndOneStepBeforeTheirMinimum) {
  const int64_t n = 110, w = 10;
  const auto at = [&](Kind kind, int64_t step, double min_ratio = 0) {
    return Schedule({.kind = kind, .warmup_steps = w, .warmup_tokens = {}, .min_ratio = min_ratio}, n, 1)
        .multiplier(step);
  };
  EXPECT_DOUBLE_EQ(at(Kind::linear, 60), 0.5);
  EXPECT_NEAR(at(Kind::linear, 109), 0.01, 1e-12);
  EXPECT_DOUBLE_EQ(at(Kind::cosine, 60), 0.5);
  EXPECT_NEAR(at(Kind::cosine, 109), 0.5 * (1 + std::cos(M_PI * 0.99)), 1e-12);
  EXPECT_GT(at(Kind::cosine, 109), 0);
  EXPECT_NEAR(at(Kind::cosine, 109, 0.1), 0.1, 1e-3);
  EXPECT_DOUBLE_EQ(at(Kind::linear, 60, 0.1), 0.55);
  EXPECT_DOUBLE_EQ(at(Kind::linear, 110, 0.1), 0.1);  // past the end
  EXPECT_DOUBLE_EQ(at(Kind::linear, 5000, 0.1), 0.1);
  EXPECT_DOUBLE_EQ(at(Kind::constant, 109), 1);
}

TEST(Schedule, WsdHoldsThenFalls) {
  ScheduleSpec spec{.kind = Kind::wsd, .warmup_steps = 10, .warmup_tokens = {}, .decay_fraction = 0.2};
  const Schedule linear(spec, 100, 1);
  EXPECT_EQ(linear.decay_begin(), 80);
  EXPECT_DOUBLE_EQ(linear.multiplier(79), 1);
  EXPECT_DOUBLE_EQ(linear.multiplier(80), 1);
  EXPECT_DOUBLE_EQ(linear.multiplier(90), 0.5);
  EXPECT_NEAR(linear.multiplier(99), 0.05, 1e-12);
  spec.decay = ScheduleSpec::Decay::one_minus_sqrt;
  const Schedule root(spec, 100, 1);
  EXPECT_DOUBLE_EQ(root.multiplier(85), 0.5);  // 1 - sqrt(5 / 20)
  EXPECT_LT(root.multiplier(99), linear.multiplier(99));
  spec.decay_fraction = 0;
  EXPECT_DOUBLE_EQ(Schedule(spec, 100, 1).multiplier(99), 1);
}

TEST(Schedule, WarmupInTokensRoundsUpToSteps) {
  const auto steps = [](int64_t tokens) {
    return Schedule({.kind = Kind::wsd, .warmup_steps = {}, .warmup_tokens = tokens}, 100, 1000)
        .warmup_steps();
  };
  EXPECT_EQ(steps(0), 0);
  EXPECT_EQ(steps(1), 1);
  EXPECT_EQ(steps(1000), 1);
  EXPECT_EQ(steps(1001), 2);
}

TEST(Schedule, OneStepRunsLearn) {
  for (Kind kind : {Kind::constant, Kind::linear, Kind::cosine, Kind::wsd})
    for (int64_t warmup : {0, 1})
      EXPECT_DOUBLE_EQ(
          Schedule({.kind = kind, .warmup_steps = warmup, .warmup_tokens = {}}, 1, 1).multiplier(0), 1);
}

TEST(Schedule, WhatDoesNotFitIsRefusedWithItsNumbers) {
  try {
    Schedule({.kind = Kind::cosine, .warmup_steps = 11, .warmup_tokens = {}}, 10, 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "[schedule] the warmup has 11 steps, the run only 10; shorten the warmup or train longer");
  }
  EXPECT_THROW(Schedule({.kind = Kind::wsd, .warmup_steps = 90, .warmup_tokens = {}}, 100, 1), Error);
  EXPECT_THROW(Schedule({.warmup_steps = {}, .warmup_tokens = {}}, 0, 1), Error);
  EXPECT_THROW(Schedule({.warmup_steps = {}, .warmup_tokens = INT64_MAX}, 100, 2), Error);
}

TEST(ScheduleSpec, ReadsDumpsAndRefuses) {
  const ScheduleSpec s =
      read_spec<ScheduleSpec>("{ kind: wsd, warmup_tokens: 5.0e9, decay: one_minus_sqrt }", "r.yaml");
  EXPECT_EQ(s.warmup_tokens, 5000000000);
  EXPECT_EQ(s.decay, ScheduleSpec::Decay::one_minus_sqrt);
  EXPECT_EQ(dump_spec(read_spec<ScheduleSpec>(dump_spec(s), "again")), dump_spec(s));
  EXPECT_THROW(read_spec<ScheduleSpec>("{ kind: cosine, decay_fraction: 0.1 }", "r.yaml"), Error);
  EXPECT_THROW(read_spec<ScheduleSpec>("{ warmup_tokens: 5, warmup_steps: 5 }", "r.yaml"), Error);
  EXPECT_THROW(read_spec<ScheduleSpec>("{ kind: wsd, decay_fraction: 1.5 }", "r.yaml"), Error);
}

}  // namespace
}  // namespace osprey
