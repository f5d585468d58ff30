#include "kernels/step_control.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using namespace kernels;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// All scalars after a decision about these sums.
std::vector<double> decide(double loss, double sum_of_squares, std::optional<double> limit) {
  std::vector<double> v(step_scalars);
  for (size_t i = 0; i < v.size(); ++i) v[i] = -1.0 - static_cast<double>(i);
  v[step_loss] = loss;
  v[step_sum_of_squares] = sum_of_squares;
  const test::DeviceCopy<double> control(v);
  decide_step(test::test_queue(), {.control = control.flat(), .max_grad_norm = limit});
  EXPECT_TRUE(control.guards_intact());
  const std::vector<double> after = control.values();
  for (size_t i = 0; i < v.size(); ++i)
    if (i != step_grad_scale && i != step_apply && !std::isnan(v[i])) {
      EXPECT_EQ(after[i], v[i]) << i;
    }
  return after;
}

TEST(DecideStep, TheNormAfterwardsIsTheSmallerOfNormAndLimit) {
  for (double norm : {0.0, 1e-12, 0.3, 0.999, 1.0, 1.001, 7.5, 1e18})
    for (double limit : {1e-3, 1.0, 5.0}) {
      const std::vector<double> after = decide(3.5, norm * norm, limit);
      EXPECT_EQ(after[step_apply], 1);
      EXPECT_NEAR(norm * after[step_grad_scale], std::min(norm, limit), 1e-12 * std::min(norm, limit));
    }
}

TEST(DecideStep, ScalesOnlyBeyondTheLimit) {
  EXPECT_EQ(decide(1, 25, 5.0)[step_grad_scale], 1);
  EXPECT_EQ(decide(1, 25, std::nextafter(5.0, 6.0))[step_grad_scale], 1);
  EXPECT_LT(decide(1, 25, std::nextafter(5.0, 4.0))[step_grad_scale], 1);
  EXPECT_EQ(decide(1, 25, 2.5)[step_grad_scale], 0.5);
  EXPECT_EQ(decide(1, 0, 1e-9)[step_grad_scale], 1);
  EXPECT_EQ(decide(1, 1e300, {})[step_grad_scale], 1);  // off
}

TEST(DecideStep, WhatIsNotFiniteIsNotApplied) {
  for (double bad : {infinity, -infinity, nan})
    for (const std::optional<double> limit : {std::optional<double>(1.0), std::optional<double>()}) {
      for (const auto& [loss, squares] : {std::pair{bad, 4.0}, {1.0, bad}, {bad, bad}}) {
        const std::vector<double> after = decide(loss, squares, limit);
        EXPECT_EQ(after[step_apply], 0) << loss << " " << squares;
        EXPECT_EQ(after[step_grad_scale], 1) << loss << " " << squares;
      }
    }
  EXPECT_EQ(decide(std::numeric_limits<double>::max(), 1, 1.0)[step_apply], 1);
  EXPECT_EQ(decide(-2.5, 0, 1.0)[step_apply], 1);
}

TEST(DecideStep, RefusesWhatIsNotAControl) {
  const test::DeviceCopy<double> few(std::vector<double>(size_t{step_scalars} - 1));
  const test::DeviceCopy<float> narrow(std::vector<float>(size_t{step_scalars}));
  EXPECT_THROW(decide_step(test::test_queue(), {.control = few.flat()}), Error);
  EXPECT_THROW(decide_step(test::test_queue(), {.control = narrow.flat()}), Error);
}

}  // namespace
}  // namespace osprey
