#include "framework/data/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace osprey {
namespace {

TEST(Permutation, IsABijectionOfEverySize) {
  for (uint64_t n = 0; n <= 300; ++n)
    for (uint64_t seed = 0; seed < 3; ++seed) {
      const Permutation p(n, seed, 9);
      std::vector<int> hit(n);
      for (uint64_t i = 0; i < n; ++i) {
        ASSERT_LT(p(i), n);
        ++hit[p(i)];
      }
      for (const int h : hit) ASSERT_EQ(h, 1) << n;
    }
  const uint64_t n = 1000003;
  const Permutation p(n, 42, 1);
  std::vector<bool> hit(n);
  for (uint64_t i = 0; i < n; ++i) hit[p(i)] = true;
  EXPECT_EQ(std::count(hit.begin(), hit.end(), true), static_cast<int64_t>(n));
}

TEST(Permutation, GoldenSequenceNeverChanges) {
  // Runs in the field depend on it: a change here changes the data order of every resumed run.
  std::vector<uint64_t> got;
  const Permutation p(1000, 42, 7);
  for (uint64_t i = 0; i < 12; ++i) got.push_back(p(i));
  EXPECT_EQ(got, (std::vector<uint64_t>{80, 590, 230, 209, 240, 551, 726, 22, 234, 554, 250, 892}));
  const Permutation large(uint64_t{1} << 40, 42, 7);
  EXPECT_EQ(large(0), 1068753418553u);
  EXPECT_EQ(large(123456789), 445083363877u);
}

TEST(Permutation, SeedAndStreamChooseIt) {
  const Permutation a(1000, 1, 1), b(1000, 2, 1), c(1000, 1, 2);
  int same_b = 0, same_c = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same_b += a(i) == b(i);
    same_c += a(i) == c(i);
  }
  EXPECT_LT(same_b, 10);  // 1 expected
  EXPECT_LT(same_c, 10);
}

TEST(Permutation, NeighboursAndPositionsAreUncorrelated) {
  const uint64_t n = 20000;
  const Permutation p(n, 5, 5);
  double with_position = 0, with_neighbour = 0;
  const double mean = (n - 1) / 2.0, variance = (static_cast<double>(n) * n - 1) / 12.0;
  for (uint64_t i = 0; i + 1 < n; ++i) {
    with_position += (static_cast<double>(p(i)) - mean) * (static_cast<double>(i) - mean);
    with_neighbour += (static_cast<double>(p(i)) - mean) * (static_cast<double>(p(i + 1)) - mean);
  }
  const double limit = 4 / std::sqrt(static_cast<double>(n));  // four standard errors
  EXPECT_LT(std::abs(with_position / (n * variance)), limit);
  EXPECT_LT(std::abs(with_neighbour / (n * variance)), limit);
}

TEST(Permutation, SmallSizesReachEveryOrder) {
  // All 24 orders of four items appear about equally often over many seeds.
  std::vector<int> count(256);
  for (uint64_t seed = 0; seed < 2400; ++seed) {
    const Permutation p(4, seed, 3);
    ++count[p(0) * 64 + p(1) * 16 + p(2) * 4 + p(3)];
  }
  int orders = 0;
  for (const int c : count) {
    orders += c > 0;
    if (c > 0) {
      EXPECT_NEAR(c, 100, 50);
    }
  }
  EXPECT_EQ(orders, 24);
}

}  // namespace
}  // namespace osprey
