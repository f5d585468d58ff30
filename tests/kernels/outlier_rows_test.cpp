#include "kernels/outlier_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;
using Floats = std::vector<float>;
using Rows = std::vector<int32_t>;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(),
                not_a_number = std::numeric_limits<float>::quiet_NaN();

Floats normal(int64_t count, uint64_t stream = 1) {
  Floats v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = random_normal(9, stream, i);
  return v;
}
std::vector<bf16> half(const Floats& v) {
  std::vector<bf16> b;
  for (float f : v) b.push_back(to_bf16(f));
  return b;
}

Rows largest(const Tensor& x, int64_t k, int threads = 2) {
  const DeviceCopy<int32_t> rows(Rows(static_cast<size_t>(k), -1));
  const DeviceCopy<float> squares(Floats(static_cast<size_t>(x.rows())));
  kernels::largest_rows(test_queue(threads), {.rows = rows.flat(), .squares = squares.flat(), .x = x});
  EXPECT_TRUE(rows.guards_intact());
  EXPECT_TRUE(squares.guards_intact());
  return rows.values();
}
/// Of a matrix of one column.
Rows largest(const Floats& x, int64_t k) {
  const DeviceCopy<float> copy(x);
  return largest(copy.tensor({static_cast<int64_t>(x.size()), 1}), k);
}

/// By sorting all rows.
Rows expected(const Floats& x, int64_t cols, int64_t k) {
  std::vector<double> squares(x.size() / static_cast<size_t>(cols));
  for (size_t i = 0; i < x.size(); ++i)
    squares[i / static_cast<size_t>(cols)] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  Rows rows(squares.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) {
    return squares[static_cast<size_t>(a)] > squares[static_cast<size_t>(b)];
  });
  rows.resize(static_cast<size_t>(k));
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace

TEST(LargestRows, AreThoseOfASortWhateverTheShapesAndThreads) {
  for (int64_t n : {1, 2, 31, 300, 1024, 2500})
    for (int64_t cols : {1, 32, 77}) {
      const Floats x = normal(n * cols);
      const DeviceCopy<float> copy(x, 1);
      const Tensor whole = copy.tensor({n, cols});
      for (int64_t k : {int64_t{1}, int64_t{2}, int64_t{16}, int64_t{256}, n - 1, n}) {
        if (k < 1 || k > n) continue;
        EXPECT_EQ(largest(whole, k, 1), expected(x, cols, k)) << n << " " << cols << " " << k;
        EXPECT_EQ(largest(whole, k, 3), expected(x, cols, k)) << n << " " << cols << " " << k;
      }
    }
}

TEST(LargestRows, ReadsHalfPrecisionAndPartsOfWiderMatrices) {
  constexpr int64_t n = 200, cols = 96, begin = 17, end = 80;
  const std::vector<bf16> x = half(normal(n * cols));
  Floats part;
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = begin; c < end; ++c) part.push_back(to_float(x[static_cast<size_t>(r * cols + c)]));
  const DeviceCopy<bf16> copy(x, 1);
  EXPECT_EQ(largest(copy.tensor({n, cols}).columns(begin, end), 20), expected(part, end - begin, 20));
}

TEST(LargestRows, TakesTheLowerRowOfEqualOnes) {
  EXPECT_EQ(largest(Floats(3000, -2.0f), 5), (Rows{0, 1, 2, 3, 4}));
  Floats x(3000, 1.0f);
  for (size_t r : {7, 1023, 1024, 2999}) x[r] = -3;
  for (size_t r : {2000, 2001}) x[r] = 4;
  EXPECT_EQ(largest(x, 2), (Rows{2000, 2001}));
  EXPECT_EQ(largest(x, 4), (Rows{7, 1023, 2000, 2001}));
  EXPECT_EQ(largest(x, 7), (Rows{0, 7, 1023, 1024, 2000, 2001, 2999}));
  EXPECT_EQ(largest(Floats(40, 0.0f), 3), (Rows{0, 1, 2})) << "zeros are rows too";
}

TEST(LargestRows, NaNIsLargestAndThenInfinity) {
  Floats x(100, 1.0f);
  x[90] = -infinity, x[50] = not_a_number, x[70] = -not_a_number, x[30] = 1e30f;  // whose square is no float
  EXPECT_EQ(largest(x, 1), (Rows{50}));
  EXPECT_EQ(largest(x, 2), (Rows{50, 70}));
  EXPECT_EQ(largest(x, 3), (Rows{30, 50, 70})) << "an overflow is as large as infinity";
  EXPECT_EQ(largest(x, 4), (Rows{30, 50, 70, 90}));
  EXPECT_EQ(largest(x, 5), (Rows{0, 30, 50, 70, 90}));
  EXPECT_EQ(largest(Floats(9, not_a_number), 4), (Rows{0, 1, 2, 3}));
}

TEST(LargestRows, RefusesWhatItCannotRead) {
  const DeviceCopy<float> x(normal(60)), squares(Floats(10));
  const DeviceCopy<int32_t> rows(Rows(11));
  const auto words = [&](const Tensor& from, const Tensor& to, const Tensor& sums) {
    return refusal([&] { kernels::largest_rows(test_queue(), {.rows = to, .squares = sums, .x = from}); });
  };
  const Tensor whole = x.tensor({10, 6});
  EXPECT_EQ(words(whole, rows.range(0, 10), squares.flat()), "accepted");
  EXPECT_NE(words(whole, rows.flat(), squares.flat()).find("at most 10"), std::string::npos);
  EXPECT_NE(words(whole, Tensor{}, squares.flat()).find("rows must be i32"), std::string::npos);
  EXPECT_NE(words(whole, rows.range(0, 2), squares.range(1, 10)).find("squares must be f32 (10)"),
            std::string::npos);
  EXPECT_NE(words(rows.range(0, 10), rows.range(0, 2), squares.flat()).find("x must be f32 or bf16"),
            std::string::npos);
}

TEST(ScatterRows, PutsRowsWhereTheyBelongAndNothingElse) {
  constexpr int64_t n = 50, cols = 70, k = 3, begin = 9, end = 66;
  const Floats y = normal(n * cols), x = normal(k * (end - begin), 2);
  const Rows to = {4, 0, 49};
  const DeviceCopy<int32_t> rows(to);
  const DeviceCopy<float> into(y, 3), from(x);
  const DeviceCopy<bf16> small_into(half(y), 1), small_from(half(x));
  const auto scatter = [&](const auto& a, const auto& b) {
    kernels::scatter_rows(
        test_queue(),
        {.y = a.tensor({n, cols}).columns(begin, end), .x = b.tensor({k, end - begin}), .rows = rows.flat()});
    EXPECT_TRUE(a.guards_intact());
  };
  scatter(into, from);
  scatter(small_into, small_from);
  Floats want = y;
  for (size_t i = 0; i < k; ++i)
    std::copy_n(x.begin() + static_cast<int64_t>(i) * (end - begin), end - begin,
                want.begin() + to[i] * cols + begin);
  EXPECT_EQ(into.values(), want);
  const std::vector<bf16> small = small_into.values(), small_want = half(want);
  for (size_t i = 0; i < small.size(); ++i) ASSERT_EQ(small[i].bits, small_want[i].bits) << i;
}

TEST(ScatterRows, RefusesWhatDoesNotFit) {
  const DeviceCopy<float> y(normal(60)), x(normal(12));
  const DeviceCopy<bf16> b(half(normal(12)));
  const DeviceCopy<int32_t> rows(Rows{3, 10});
  const auto words = [&](const Tensor& to, const Tensor& from, const Tensor& where) {
    return refusal([&] { kernels::scatter_rows(test_queue(), {.y = to, .x = from, .rows = where}); });
  };
  const Tensor whole = y.tensor({10, 6});
  EXPECT_NE(words(whole, b.tensor({2, 6}), rows.flat()).find("of one width"), std::string::npos);
  EXPECT_NE(words(whole, x.tensor({3, 4}), rows.flat()).find("of one width"), std::string::npos);
  EXPECT_NE(words(whole, x.tensor({2, 6}), rows.range(0, 1)).find("rows must be i32 (2)"), std::string::npos);
  if (test_device().kind != DeviceKind::cpu) return;
  EXPECT_NE(words(whole, x.tensor({2, 6}), rows.flat()).find("row 10 is outside the 10"), std::string::npos);
}
