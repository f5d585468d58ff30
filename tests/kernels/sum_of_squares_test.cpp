#include "kernels/sum_of_squares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using test::DeviceCopy;
using test::test_queue;

double sum_of(const std::vector<Tensor>& xs, int threads = 2, double start = 0) {
  const DeviceCopy<double> sum({start});
  kernels::sum_of_squares(test_queue(threads), {.xs = xs, .sum = sum.flat()});
  EXPECT_TRUE(sum.guards_intact());
  return sum[0];
}

// Of very different sizes, so that a sum in fp32 or a lost element would show.
std::vector<float> draw(size_t n, uint64_t stream = 2) {
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i)
    x[i] = random_normal(1, stream, i) * std::exp2(static_cast<float>(i % 31) - 15);
  return x;
}
double squares(const std::vector<float>& x) {
  double sum = 0;
  for (float e : x) sum += static_cast<double>(e) * e;
  return sum;
}

TEST(SumOfSquares, DoesNotDependOnThreadsAndAdds) {
  for (size_t n : {0u, 1u, 16383u, 16385u, 300003u}) {
    const std::vector<float> x = draw(n);
    const DeviceCopy<float> on_device(x);
    const double one = sum_of({on_device.flat()}, 1);
    EXPECT_NEAR(one, squares(x), 1e-12 * squares(x));
    EXPECT_EQ(one, sum_of({on_device.flat()}, 2));
    EXPECT_EQ(one, sum_of({on_device.flat()}, 5));
  }
  const DeviceCopy<float> x({3, 4});
  EXPECT_EQ(sum_of({x.flat()}, 2, 11), 36);
  EXPECT_EQ(sum_of({}, 2, 11), 11);
}

TEST(SumOfSquares, TakesHundredsOfTensorsOfAllLengths) {
  const std::vector<float> x = draw(90000);
  const DeviceCopy<float> on_device(x);
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (int64_t length = 0; parts.size() < 500; begin += length, length = (length + 7) % 311)
    parts.push_back(on_device.range(begin, begin + length));
  parts.push_back(on_device.range(begin, 90000).view({1, 90000 - begin}));
  EXPECT_NEAR(sum_of(parts), squares(x), 1e-12 * squares(x));
  EXPECT_EQ(sum_of(parts), sum_of(parts, 5));
}

TEST(SumOfSquares, MemoryMayBeginAnywhere) {
  const DeviceCopy<float> aligned(draw(5003)), shifted(draw(5003), 1);
  EXPECT_EQ(sum_of({aligned.flat()}), sum_of({shifted.flat()}));
}

TEST(SumOfSquares, IsFiniteExactlyWhenEveryElementIs) {
  const DeviceCopy<float> largest(std::vector<float>(40000, std::numeric_limits<float>::max()));
  EXPECT_TRUE(std::isfinite(sum_of({largest.flat()})));
  DeviceCopy<float> x(std::vector<float>(40000));
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()})
    for (size_t at : {0u, 7u, 16384u, 39999u}) {
      std::vector<float> y(40000, 1e-30f);
      y[at] = bad;
      x.set(y);
      EXPECT_FALSE(std::isfinite(sum_of({x.flat()}))) << bad << " at " << at;
    }
}

TEST(SumOfSquares, RefusesWhatItCannotRead) {
  const DeviceCopy<float> x(std::vector<float>(8));
  const DeviceCopy<bf16> b(std::vector<bf16>(8));
  EXPECT_THROW(sum_of({x.flat(), b.flat()}), Error);
  const std::vector<Tensor> xs{x.flat()};
  EXPECT_THROW(kernels::sum_of_squares(test_queue(), {.xs = xs, .sum = x.range(0, 1)}), Error);
}

}  // namespace
}  // namespace osprey
