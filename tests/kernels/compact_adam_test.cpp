#include "kernels/compact_adam.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/adamw.h"
#include "kernels/core/random.h"
#include "kernels/numerics/dynamic_code.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using kernels::CompactAdam;
using test::control;
using test::DeviceCopy;
using test::test_queue;

constexpr size_t count = 1000;  // four blocks, the last one short

std::vector<float> normal(size_t n, float scale, uint64_t stream) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) x[i] = scale * random_normal(1, stream, i);
  return x;
}

std::vector<float> zeros() { return std::vector<float>(count); }

std::vector<bf16> rounded(const std::vector<float>& x) {
  std::vector<bf16> y;
  for (const float v : x) y.push_back(to_bf16(v));
  return y;
}

CompactAdam settings() {
  return {.learning_rate = 0.01,
          .beta1 = 0.9,
          .beta2 = 0.95,
          .eps = 1e-8,
          .weight_decay = 0.1,
          .seed = 7,
          .stream = 9};
}

template <DynamicCode kind>
std::vector<float> magnitudes() {
  std::vector<float> all;
  for (int r = 0; r <= (kind == DynamicCode::with_sign ? 128 : 255); ++r)
    all.push_back(dynamic_magnitude<kind>(r));
  return all;
}

template <DynamicCode kind>
void expect_nearest_codes() {
  const std::vector<float> all = magnitudes<kind>();
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
  EXPECT_EQ(all.front(), 0);
  EXPECT_EQ(all.back(), 1);
  EXPECT_EQ(std::set<float>(all.begin(), all.end()).size(), all.size());
  for (int i = 0; i <= 200000; ++i) {
    // Half of them spread over the decades.
    const float y =
        i % 2 ? static_cast<float>(i) / 200000 : std::pow(10.0f, -8.0f * static_cast<float>(i) / 200000);
    float best = 2;
    const auto above = std::lower_bound(all.begin(), all.end(), y);
    for (auto at = above == all.begin() ? above : above - 1; at != all.end() && at <= above; ++at)
      best = std::min(best, std::abs(*at - y));
    ASSERT_EQ(std::abs(all[static_cast<size_t>(dynamic_rank<kind>(y))] - y), best) << y;
  }
}

TEST(DynamicCode, EveryNumberGetsTheNearestCode) {
  expect_nearest_codes<DynamicCode::with_sign>();
  expect_nearest_codes<DynamicCode::without_sign>();
}

TEST(DynamicCode, CodesAreThoseOfThePublishedTable) {
  // bitsandbytes.functional.create_dynamic_map() and its unsigned form: a few entries, to six digits.
  const auto with = magnitudes<DynamicCode::with_sign>(), without = magnitudes<DynamicCode::without_sign>();
  EXPECT_NEAR(with[1], 5.5e-7, 1e-12);
  EXPECT_NEAR(with[2], 3.25e-6, 1e-11);
  EXPECT_NEAR(with[3], 7.75e-6, 1e-11);
  EXPECT_NEAR(with[127], 0.99296875, 1e-6);
  EXPECT_NEAR(without[1], 3.25e-7, 1e-12);
  EXPECT_NEAR(without[254], 0.996484375, 1e-6);
}

TEST(DynamicCode, CodesWithSignReadBack) {
  for (int code = 0; code < 256; ++code) {
    const float x = dynamic_decode<DynamicCode::with_sign>(static_cast<uint8_t>(code));
    EXPECT_EQ(dynamic_encode<DynamicCode::with_sign>(x), code);
    const float y = dynamic_decode<DynamicCode::without_sign>(static_cast<uint8_t>(code));
    EXPECT_EQ(dynamic_encode<DynamicCode::without_sign>(y), code);
  }
}

TEST(CompactAdam, InFp32ItIsAdamW) {
  const DeviceCopy<float> a(normal(count, 1, 1)), b(a.values()), ma(zeros()), va(ma.values()),
      mb(ma.values()), vb(ma.values());
  DeviceCopy<float> g(normal(count, 0.1f, 2));
  for (int t = 3; t < 8; ++t) {
    g.set(normal(count, 0.1f, 10 + static_cast<uint64_t>(t)));
    const auto scalars = control({.step = t, .learning_rate_factor = 0.5, .grad_scale = 0.25});
    const kernels::AdamWPiece piece{
        .value = a.flat(), .master = a.flat(), .grad = g.flat(), .m = ma.flat(), .v = va.flat()};
    kernels::adamw(test_queue(), {.pieces = {&piece, 1},
                                  .learning_rate = 0.01,
                                  .beta1 = 0.9,
                                  .beta2 = 0.95,
                                  .eps = 1e-8,
                                  .weight_decay = 0.1,
                                  .since = 3,
                                  .control = scalars.flat()});
    CompactAdam c = settings();
    c.weight = b.flat();
    c.grad = g.flat();
    c.m.values = mb.flat();
    c.v.values = vb.flat();
    c.since = 3;
    c.control = scalars.flat();
    kernels::compact_adam(test_queue(), c);
  }
  const auto pa = a.values(), pb = b.values(), x = ma.values(), y = mb.values();
  for (size_t i = 0; i < count; ++i) {
    ASSERT_NEAR(pa[i], pb[i], 1e-6) << i;
    ASSERT_NEAR(x[i], y[i], 1e-8) << i;
  }
}

TEST(CompactAdam, EpsMayStandBesideThePlainRoot) {
  // As in the AdamW of transformers: lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps).
  constexpr double eps = 0.01;
  const std::vector<float> start = normal(count, 1, 1), gradient = normal(count, 0.1f, 2);
  const DeviceCopy<float> a(start), b(start), g(gradient), ma(zeros()), va(zeros()), mb(zeros()), vb(zeros());
  const auto scalars = control({.step = 2});
  const kernels::AdamWPiece piece{
      .value = a.flat(), .master = a.flat(), .grad = g.flat(), .m = ma.flat(), .v = va.flat()};
  kernels::adamw(test_queue(), {.pieces = {&piece, 1},
                                .learning_rate = 0.01,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = eps,
                                .eps_place = EpsPlace::plain_root,
                                .control = scalars.flat()});
  CompactAdam c = settings();
  c.weight = b.flat();
  c.grad = g.flat();
  c.m.values = mb.flat();
  c.v.values = vb.flat();
  c.eps = eps;
  c.eps_place = EpsPlace::plain_root;
  c.weight_decay = 0;
  c.control = scalars.flat();
  kernels::compact_adam(test_queue(), c);
  const auto pa = a.values(), pb = b.values();
  const double step = 0.01 * std::sqrt(1 - std::pow(0.95, 3)) / (1 - std::pow(0.9, 3));
  for (size_t i = 0; i < count; ++i) {
    const double x = gradient[i], m = 0.1 * x, v = 0.05 * x * x;
    const double want = static_cast<double>(start[i]) - step * m / (std::sqrt(v) + eps);
    ASSERT_NEAR(pa[i], want, 1e-6) << i;
    ASSERT_NEAR(pb[i], want, 1e-6) << i;
  }
}

TEST(CompactAdam, ADirectionIsTheStepThatIsNotTaken) {
  const DeviceCopy<float> w(zeros()), d(zeros()), g(normal(count, 0.1f, 2)), m(zeros()), v(m.values()),
      m2(m.values()), v2(m.values());
  const DeviceCopy<bf16> narrow(rounded(zeros())), direction(rounded(zeros()));
  const auto scalars = control({.step = 4});
  CompactAdam c = settings();
  c.grad = g.flat();
  c.control = scalars.flat();
  c.weight = w.flat();
  c.rounded = narrow.flat();
  c.m.values = m.flat();
  c.v.values = v.flat();
  kernels::compact_adam(test_queue(), c);
  c.weight = c.rounded = {};
  c.direction = direction.flat();
  c.m.values = m2.flat();
  c.v.values = v2.flat();
  kernels::compact_adam(test_queue(), c);
  const auto weight = w.values();
  const auto r = narrow.values(), dir = direction.values();
  for (size_t i = 0; i < count; ++i) {
    ASSERT_NEAR(weight[i], -0.01f * to_float(dir[i]), 1e-4 * std::abs(weight[i]) * 50) << i;
    ASSERT_EQ(r[i].bits, to_bf16(weight[i]).bits);
  }
  EXPECT_EQ(m.values(), m2.values());
  EXPECT_TRUE(w.guards_intact() && narrow.guards_intact() && direction.guards_intact() && m.guards_intact());
}

TEST(CompactAdam, WeightsWithoutMasterMoveOnAverageByStepsTheyCannotHold) {
  // A step of 1e-4 on a weight of 1, whose neighbours are 2^-7 away below and above.
  const size_t n = 4096;
  const DeviceCopy<bf16> w(rounded(std::vector<float>(n, 1.0f)));
  const DeviceCopy<float> g(std::vector<float>(n, 1.0f)), m(normal(n, 0, 1)), v(m.values());
  const int steps = 50;
  for (int t = 0; t < steps; ++t) {
    const auto scalars = control({.step = t});
    CompactAdam c = settings();
    c.learning_rate = 1e-4;
    c.weight_decay = 0;
    c.weight = w.flat();
    c.grad = g.flat();
    c.m.values = m.flat();
    c.v.values = v.flat();
    c.control = scalars.flat();
    kernels::compact_adam(test_queue(), c);
  }
  double mean = 0;
  for (const bf16 x : w.values()) mean += static_cast<double>(to_float(x)) / static_cast<double>(n);
  // The spread of one weight after 50 draws is below 7 of its spacings of 2^-8.
  EXPECT_NEAR(mean, 1 - 1e-4 * steps, 4 * 7 * 0.0039 / std::sqrt(static_cast<double>(n)));
  EXPECT_LT(mean, 1);
}

struct Stored {
  DeviceCopy<bf16> m16{std::vector<bf16>(count)}, v16{std::vector<bf16>(count)};
  DeviceCopy<uint8_t> m8{std::vector<uint8_t>(count)}, v8{std::vector<uint8_t>(count)};
  DeviceCopy<float> m_scale{std::vector<float>(4)}, v_scale{std::vector<float>(4)};
};

TEST(CompactAdam, SmallMomentsFollowTheFp32OnesWithinTheirSpacing) {
  for (const bool bytes : {false, true}) {
    const DeviceCopy<float> a(normal(count, 1, 1)), b(a.values()), m(zeros()), v(m.values());
    DeviceCopy<float> g(normal(count, 0.1f, 2));
    const Stored s;
    for (int t = 0; t < 20; ++t) {
      g.set(normal(count, 0.1f, 50 + static_cast<uint64_t>(t)));
      const auto scalars = control({.step = t});
      CompactAdam c = settings();
      c.grad = g.flat();
      c.control = scalars.flat();
      c.weight = a.flat();
      c.m.values = m.flat();
      c.v.values = v.flat();
      kernels::compact_adam(test_queue(), c);
      c.weight = b.flat();
      c.m =
          bytes ? kernels::StoredMoment{s.m8.flat(), s.m_scale.flat()} : kernels::StoredMoment{s.m16.flat()};
      c.v =
          bytes ? kernels::StoredMoment{s.v8.flat(), s.v_scale.flat()} : kernels::StoredMoment{s.v16.flat()};
      kernels::compact_adam(test_queue(), c);
    }
    double apart = 0, moved = 0;
    const auto pa = a.values(), pb = b.values(), start = normal(count, 1, 1);
    for (size_t i = 0; i < count; ++i) {
      apart += std::pow(static_cast<double>(pa[i] - pb[i]), 2);
      moved += std::pow(static_cast<double>(pa[i] - start[i]), 2);
    }
    EXPECT_GT(apart, 0);
    EXPECT_LT(std::sqrt(apart / moved), bytes ? 0.05 : 0.02);
    EXPECT_TRUE(s.m8.guards_intact() && s.v8.guards_intact() && s.m16.guards_intact() &&
                s.m_scale.guards_intact());
  }
}

TEST(CompactAdam, ResultsDependNeitherOnThreadsNorOnAStepThatIsSkipped) {
  const auto run = [](int threads, double apply) {
    const DeviceCopy<bf16> w(rounded(normal(count, 1, 1)));
    const DeviceCopy<float> g(normal(count, 0.1f, 2));
    const Stored s;
    const auto scalars = control({.step = 0, .apply = apply});
    CompactAdam c = settings();
    c.weight = w.flat();
    c.grad = g.flat();
    c.m = {s.m8.flat(), s.m_scale.flat()};
    c.v = {s.v8.flat(), s.v_scale.flat()};
    c.control = scalars.flat();
    kernels::compact_adam(test_queue(threads), c);
    std::vector<uint32_t> all;
    for (const bf16 x : w.values()) all.push_back(x.bits);
    for (const uint8_t x : s.m8.values()) all.push_back(x);
    return all;
  };
  EXPECT_EQ(run(1, 1), run(3, 1));
  std::vector<uint32_t> untouched;
  for (const bf16 x : rounded(normal(count, 1, 1))) untouched.push_back(x.bits);
  untouched.resize(2 * count);
  EXPECT_EQ(run(2, 0), untouched);
}

TEST(ApplyStep, MovesWeightsByFactorTimesStep) {
  const DeviceCopy<float> w(normal(count, 1, 1)), x(normal(count, 1, 2));
  const DeviceCopy<bf16> r(rounded(zeros()));
  const auto scalars = control({.step = 2, .learning_rate_factor = 0.5});
  const auto start = w.values();
  kernels::apply_step(test_queue(), {.weight = w.flat(),
                                     .rounded = r.flat(),
                                     .x = x.flat(),
                                     .step_size = 0.02,
                                     .decay = 0.1,
                                     .control = scalars.flat()});
  const auto now = w.values(), by = x.values();
  const auto narrow = r.values();
  for (size_t i = 0; i < count; ++i) {
    ASSERT_NEAR(now[i], start[i] - 0.5f * (0.02f * by[i] + 0.1f * start[i]), 1e-6);
    ASSERT_EQ(narrow[i].bits, to_bf16(now[i]).bits);
  }
}

}  // namespace
}  // namespace osprey
