#include "framework/train/clip.h"

#include <gtest/gtest.h>

#include <limits>

namespace osprey {
namespace {

TEST(Clip, AfterwardsTheNormIsTheSmallerOfNormAndLimit) {
  for (double norm : {0.0, 1e-9, 0.3, 0.999, 1.0, 1.001, 1.9, 4.0, 1e20})
    for (double limit : {0.25, 1.0, 2.0}) {
      const GradientNorm g = clip(norm * norm, limit);
      EXPECT_TRUE(g.finite);
      EXPECT_DOUBLE_EQ(g.norm, norm);
      EXPECT_DOUBLE_EQ(g.norm * g.scale, std::min(norm, limit)) << norm << " " << limit;
    }
}

TEST(Clip, OffNeverScales) { EXPECT_EQ(clip(1e30, {}).scale, 1); }

TEST(Clip, NonFiniteSumsSayso) {
  for (double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_FALSE(clip(bad, 1.0).finite);
    EXPECT_EQ(clip(bad, 1.0).scale, 1);
  }
}

}  // namespace
}  // namespace osprey
