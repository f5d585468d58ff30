#include "framework/scaling/lbfgs.h"

#include <gtest/gtest.h>

#include <cmath>

namespace osprey {
namespace {

using In = std::span<const double>;
using Out = std::span<double>;

TEST(Lbfgs, FindsTheMinimumOfRosenbrocksValley) {
  const Objective f = [](In x, Out g) {
    const double u = x[1] - x[0] * x[0], v = 1 - x[0];
    g[0] = -400 * x[0] * u - 2 * v;
    g[1] = 200 * u;
    return 100 * u * u + v * v;
  };
  const Minimum m = minimize(f, {-1.2, 1});
  EXPECT_NEAR(m.x[0], 1, 1e-8);
  EXPECT_NEAR(m.x[1], 1, 1e-8);
  EXPECT_LT(m.iterations, 100);
}

TEST(Lbfgs, GetsAlongWithABadConditionAndWithKinks) {
  const Objective bad = [](In x, Out g) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double scale = std::pow(10.0, static_cast<double>(i)), d = x[i] - static_cast<double>(i);
      g[i] = scale * d;
      sum += 0.5 * scale * d * d;
    }
    return sum;
  };
  const Minimum quadratic = minimize(bad, std::vector<double>(7, 10));
  for (size_t i = 0; i < 7; ++i) EXPECT_NEAR(quadratic.x[i], static_cast<double>(i), 1e-5);
  // |x - 1| + |x + y|
  const Objective kinks = [](In x, Out g) {
    const double s = x[0] > 1 ? 1 : -1, t = x[0] + x[1] > 0 ? 1 : -1;
    g[0] = s + t;
    g[1] = t;
    return std::abs(x[0] - 1) + std::abs(x[0] + x[1]);
  };
  EXPECT_NEAR(minimize(kinks, {5.3, 2.1}).value, 0, 1e-6);
}

TEST(Lbfgs, EndsWhereNothingCanBeGained) {
  const Objective flat = [](In, Out g) { return g[0] = 0, 3.0; };
  EXPECT_EQ(minimize(flat, {2}).x, std::vector<double>{2});
  const Objective nowhere = [](In, Out g) { return g[0] = 1, std::nan(""); };
  EXPECT_EQ(minimize(nowhere, {2}).x, std::vector<double>{2});
  const Objective falling = [](In x, Out g) { return g[0] = -1, -x[0]; };
  EXPECT_GT(minimize(falling, {2}, 10).x[0], 2);
}

}  // namespace
}  // namespace osprey
