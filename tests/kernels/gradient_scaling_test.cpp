#include "kernels/gradient_scaling.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using kernels::Channels;
using test::control;
using test::DeviceCopy;
using test::test_queue;

std::vector<float> normal(int64_t n, float scale, uint64_t stream) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = scale * random_normal(5, stream, i);
  return x;
}

TEST(DrawNormal, DrawsAreAFunctionOfSeedStreamAndDraw) {
  constexpr int64_t n = 700;
  for (const auto& [step, draw] : {std::pair{0, 0}, {3, 0}, {4, 1}, {11, 2}}) {
    const DeviceCopy<float> y(std::vector<float>(n), 3);
    const auto scalars = control({.step = step});
    kernels::draw_normal(test_queue(), {.y = y.flat(),
                                        .deviation = 0.25,
                                        .refresh_every = 4,
                                        .seed = 7,
                                        .stream = 9,
                                        .control = scalars.flat()});
    const auto got = y.values();
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], 0.25f * random_normal(7, 9, static_cast<uint64_t>(draw * n) + i), 1e-6) << i;
    EXPECT_TRUE(y.guards_intact());
  }
}

struct Case {
  Shape gradient, low;
  Channels channels;
  float previous;
};

/// The same in double, from the definition.
struct Expected {
  std::vector<double> factors;
  double norm = 0;
};
Expected expected(const Case& c, const std::vector<float>& d, const std::vector<float>& r,
                  const std::vector<float>& g) {
  const auto channel = [&](const Shape& s, size_t i) {
    const auto cols = static_cast<size_t>(s[1]);
    return c.channels == Channels::rows ? i / cols : c.channels == Channels::columns ? i % cols : 0;
  };
  const auto n = static_cast<size_t>(c.channels == Channels::rows      ? c.gradient[0]
                                     : c.channels == Channels::columns ? c.gradient[1]
                                                                       : 1);
  std::vector<double> dd(n), rr(n);
  Expected e{std::vector<double>(n)};
  for (size_t i = 0; i < d.size(); ++i) {
    dd[channel(c.low, i)] += std::pow(static_cast<double>(d[i]), 2);
    rr[channel(c.low, i)] += std::pow(static_cast<double>(r[i]), 2);
  }
  for (size_t k = 0; k < n; ++k) e.factors[k] = rr[k] > 0 ? std::sqrt(dd[k] / rr[k]) : 0;
  for (size_t i = 0; i < g.size(); ++i)
    e.norm += std::pow(e.factors[channel(c.gradient, i)] * static_cast<double>(g[i]), 2);
  e.norm = std::sqrt(e.norm);
  if (c.previous > 0 && e.norm > 1.01 * static_cast<double>(c.previous)) {
    const double limit = 1.01 * static_cast<double>(c.previous) / e.norm;
    for (double& f : e.factors) f *= limit;
    e.norm *= limit;
  }
  return e;
}

const Case cases[] = {
    {{37, 70}, {37, 5}, Channels::rows, 0},     {{37, 70}, {37, 5}, Channels::rows, 0.01f},
    {{21, 75}, {4, 75}, Channels::columns, 0},  {{21, 75}, {4, 75}, Channels::columns, 1e9f},
    {{21, 75}, {1, 75}, Channels::whole, 0.5f}, {{37, 20}, {37, 3}, Channels::whole, 0},
    {{1500, 3}, {1500, 2}, Channels::rows, 0}};

TEST(ScalingFactors, AreNormsOfDirectionsOverNormsOfProjections) {
  for (const Case& c : cases) {
    std::vector<float> d = normal(c.low.numel(), 1, 1), r = normal(c.low.numel(), 1e-3f, 2),
                       g = normal(c.gradient.numel(), 1e-3f, 3);
    if (c.channels == Channels::columns)  // a channel without a gradient
      for (size_t row = 0; row < static_cast<size_t>(c.low[0]); ++row)
        r[row * static_cast<size_t>(c.low[1]) + 2] = 0;
    const auto n = static_cast<size_t>(c.channels == Channels::rows      ? c.gradient[0]
                                       : c.channels == Channels::columns ? c.gradient[1]
                                                                         : 1);
    const DeviceCopy<float> direction(d), projected(r), gradient(g, 1),
        factors(std::vector<float>(n, NAN), 1), previous({c.previous}), y(std::vector<float>(g.size()), 1);
    const auto scalars = control();
    kernels::scaling_factors(test_queue(), {.factors = factors.flat(),
                                            .previous = previous.flat(),
                                            .direction = direction.tensor(c.low),
                                            .projected = projected.tensor(c.low),
                                            .gradient = gradient.tensor(c.gradient),
                                            .channels = c.channels,
                                            .control = scalars.flat()});
    kernels::scale_channels(test_queue(), {.y = y.tensor(c.gradient),
                                           .x = gradient.tensor(c.gradient),
                                           .factors = factors.flat(),
                                           .channels = c.channels});
    const Expected e = expected(c, d, r, g);
    const auto got = factors.values(), scaled = y.values();
    double squares = 0;
    for (size_t k = 0; k < n; ++k) ASSERT_NEAR(got[k], e.factors[k], 1e-5 * e.factors[k]) << k;
    for (const float v : scaled) squares += std::pow(static_cast<double>(v), 2);
    EXPECT_NEAR(previous[0] / e.norm, 1, 1e-6);
    EXPECT_NEAR(std::sqrt(squares) / e.norm, 1, 1e-6);
    EXPECT_TRUE(factors.guards_intact() && previous.guards_intact() && y.guards_intact());
  }
}

TEST(ScalingFactors, AStepThatIsSkippedKeepsTheNorm) {
  const DeviceCopy<float> d({1, 2}), g({3, 4}), factors({0, 0}), previous({5});
  const auto scalars = control({.apply = 0});
  kernels::scaling_factors(test_queue(), {.factors = factors.flat(),
                                          .previous = previous.flat(),
                                          .direction = d.tensor({2, 1}),
                                          .projected = d.tensor({2, 1}),
                                          .gradient = g.tensor({2, 1}),
                                          .channels = Channels::rows,
                                          .control = scalars.flat()});
  EXPECT_EQ(previous[0], 5);
}

TEST(ScalingFactors, WhatDoesNotFitIsRefused) {
  const DeviceCopy<float> d({1, 2}), g({3, 4, 5, 6}), factors({0, 0}), previous({5});
  const auto scalars = control();
  const auto said = test::refusal([&] {
    kernels::scaling_factors(test_queue(), {.factors = factors.flat(),
                                            .previous = previous.flat(),
                                            .direction = d.tensor({1, 2}),
                                            .projected = d.tensor({1, 2}),
                                            .gradient = g.tensor({2, 2}),
                                            .channels = Channels::rows,
                                            .control = scalars.flat()});
  });
  EXPECT_NE(said.find("has not the rows of gradient (2, 2)"), std::string::npos) << said;
}

}  // namespace
}  // namespace osprey
