#include "kernels/sum_of_squares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

double sum_of(std::vector<float>& x, int threads) {
  double sum = 0;
  kernels::sum_of_squares(
      Queue{.device = {}, .threads = threads},
      {.x = make_tensor(x.data(), {static_cast<int64_t>(x.size())}, DType::f32), .sum = &sum});
  return sum;
}

TEST(SumOfSquares, DoesNotDependOnThreadsAndAdds) {
  for (size_t n : {0u, 1u, 16383u, 16385u, 1000003u}) {
    std::vector<float> x(n);
    double expected = 0;
    for (size_t i = 0; i < n; ++i) {
      x[i] = random_normal(1, 2, i) * std::exp2(static_cast<float>(i % 31) - 15);
      expected += static_cast<double>(x[i]) * x[i];
    }
    const double one = sum_of(x, 1);
    EXPECT_NEAR(one, expected, 1e-12 * expected);
    EXPECT_EQ(one, sum_of(x, 2));
    EXPECT_EQ(one, sum_of(x, 5));
  }
  std::vector<float> x = {3, 4};
  double sum = 11;
  kernels::sum_of_squares({}, {.x = make_tensor(x.data(), {2}, DType::f32), .sum = &sum});
  EXPECT_EQ(sum, 36);
}

TEST(SumOfSquares, IsFiniteExactlyWhenEveryElementIs) {
  std::vector<float> x(40000, std::numeric_limits<float>::max());
  EXPECT_TRUE(std::isfinite(sum_of(x, 2)));
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()})
    for (size_t at : {0u, 7u, 16384u, 39999u}) {
      std::vector<float> y(40000, 1e-30f);
      y[at] = bad;
      EXPECT_FALSE(std::isfinite(sum_of(y, 2))) << bad << " at " << at;
    }
}

}  // namespace
}  // namespace osprey
