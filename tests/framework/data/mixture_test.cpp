#include "framework/data/mixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/framework/data/data_support.h"

namespace osprey {
namespace {

TEST(Mixture, SharesFollowTheWeights) {
  const std::vector<double> weights = {0.7, 0.25, 0.05};
  const Mixture mixture(weights, 42);
  std::vector<int64_t> count(3);
  for (uint64_t n = 0; n < 200000; ++n) {
    ++count[mixture(n).source];
    if (n != 9999) continue;
    for (size_t s = 0; s < 3; ++s)
      EXPECT_NEAR(count[s] / 10000.0, weights[s], 0.01) << s;  // early counts too
  }
  for (size_t s = 0; s < 3; ++s) EXPECT_NEAR(count[s] / 200000.0, weights[s], 0.01 * weights[s]) << s;
}

TEST(Mixture, EverySourceGivesItsSequencesOnceAndInBlocks) {
  // Weights that do not divide a block: what is left over must carry to later blocks, not repeat or
  // vanish.
  const std::vector<double> weights = {1, 1, 1, 1.0 / 700};
  const Mixture mixture(weights, 7);
  std::vector<std::set<uint64_t>> seen(4);
  for (uint64_t n = 0; n < 20 * Mixture::kBlock; ++n) {
    const auto pick = mixture(n);
    ASSERT_TRUE(seen[pick.source].insert(pick.index).second) << n;
  }
  for (size_t s = 0; s < 4; ++s) {
    EXPECT_EQ(*seen[s].rbegin() + 1, seen[s].size());  // indices are 0, 1, 2, ... without a gap
    const double expected = 20.0 * Mixture::kBlock * weights[s] / (3 + 1.0 / 700);
    EXPECT_NEAR(static_cast<double>(seen[s].size()), expected, 1.5);
  }
}

TEST(Mixture, OneSourceIsInOrder) {
  const Mixture mixture(std::vector<double>{3.5}, 1);
  EXPECT_EQ(mixture(123456789).index, 123456789u);
}

TEST(Mixture, WeightsTooSmallToHonourAreRefused) {
  const std::string what = error_of([] { Mixture(std::vector<double>{1, 1e-5}, 1); });
  EXPECT_TRUE(contains(what, "data.train[1].weight")) << what;
}

}  // namespace
}  // namespace osprey
