#include "kernels/outlier_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;
using Floats = std::vector<float>;

namespace {

constexpr int64_t rows = 96, cols = 200;

Floats normal(int64_t count = rows * cols) {
  Floats v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = random_normal(3, 1, i);
  return v;
}
std::vector<bf16> half(const Floats& v) {
  std::vector<bf16> b;
  for (float f : v) b.push_back(to_bf16(f));
  return b;
}
/// One row, or one column, `factor` times as large.
Floats scaled(Floats v, int64_t row, int64_t column, float factor) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      if (r == row || c == column) v[static_cast<size_t>(r * cols + c)] *= factor;
  return v;
}

struct Means {
  Floats rows, columns;
};
Means means(const std::vector<Tensor>& xs, int threads = 2) {
  int64_t count = 0;
  for (const Tensor& x : xs) count += x.rows();
  const DeviceCopy<float> r(Floats(static_cast<size_t>(count))), c(Floats(static_cast<size_t>(xs[0].cols())));
  kernels::line_squares(test_queue(threads), {.xs = xs, .rows = r.flat(), .columns = c.flat()});
  EXPECT_TRUE(r.guards_intact());
  EXPECT_TRUE(c.guards_intact());
  return {r.values(), c.values()};
}

/// counts after one matrix.
std::vector<double> counted(const Means& m, double ratio = 4) {
  const DeviceCopy<float> r(m.rows), c(m.columns);
  const DeviceCopy<double> counts(std::vector<double>(outlier_patterns, 7.0));
  kernels::count_pattern(test_queue(),
                         {.counts = counts.flat(), .rows = r.flat(), .columns = c.flat(), .ratio = ratio});
  EXPECT_TRUE(counts.guards_intact());
  return counts.values();
}
std::vector<double> counted(const Floats& x, double ratio = 4) {
  const DeviceCopy<float> copy(x);
  return counted(means({copy.tensor({rows, cols})}), ratio);
}
const std::vector<double> a_row = {8, 7, 7}, a_column = {7, 8, 7}, neither = {7, 7, 8};

}  // namespace

TEST(LineSquares, AreTheMeansOfBothDirectionsWhateverThePartsAndThreads) {
  const Floats x = normal();
  const DeviceCopy<float> copy(x, 3);
  const DeviceCopy<bf16> small(half(x), 1);
  std::vector<double> row(rows), column(cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const double v = x[static_cast<size_t>(r * cols + c)];
      row[static_cast<size_t>(r)] += v * v / cols;
      column[static_cast<size_t>(c)] += v * v / rows;
    }
  const Tensor whole = copy.tensor({rows, cols});
  const Means one = means({whole}, 1);
  for (size_t r = 0; r < row.size(); ++r) EXPECT_NEAR(one.rows[r], row[r], 1e-6 * row[r]) << r;
  for (size_t c = 0; c < column.size(); ++c) EXPECT_NEAR(one.columns[c], column[c], 1e-6 * column[c]) << c;
  const Means three = means({whole}, 3);
  EXPECT_EQ(three.rows, one.rows);
  EXPECT_EQ(three.columns, one.columns);
  const Means parts = means(
      {whole.row_range(0, 1), whole.row_range(1, 80), whole.row_range(80, 81), whole.row_range(81, rows)});
  EXPECT_EQ(parts.rows, one.rows);
  for (size_t c = 0; c < column.size(); ++c) EXPECT_NEAR(parts.columns[c], column[c], 1e-6 * column[c]) << c;
  const Means rounded = means({small.tensor({rows, cols})});
  for (size_t r = 0; r < row.size(); ++r) EXPECT_NEAR(rounded.rows[r], row[r], 1e-2 * row[r]) << r;
  const Means narrow = means({whole.columns(40, 72)});
  EXPECT_EQ(narrow.columns, Floats(one.columns.begin() + 40, one.columns.begin() + 72));
}

TEST(CountPattern, FindsTheDirectionOfTheOutliers) {
  const Floats x = normal();
  EXPECT_EQ(counted(x), neither);
  EXPECT_EQ(counted(scaled(x, 17, -1, 8)), a_row);
  EXPECT_EQ(counted(scaled(x, -1, 111, 8)), a_column);
  EXPECT_EQ(counted(scaled(x, 17, -1, 3)), neither) << "below the ratio";
  EXPECT_EQ(counted(scaled(x, 17, -1, 3), 2), a_row);
  // Both: the greater quotient wins.
  EXPECT_EQ(counted(scaled(scaled(x, 17, -1, 40), -1, 111, 8)), a_row);
  EXPECT_EQ(counted(scaled(scaled(x, 17, -1, 8), -1, 111, 40)), a_column);
}

TEST(CountPattern, ComparesTheLargestWithTheLowerMedianExactly) {
  // Squares: the largest is 16 times the median, that is 4 times in rms, and the ratio must be exceeded.
  const Floats flat(5, 1.0f);
  EXPECT_EQ(counted(Means{{1, 1, 16, 2, 1}, flat}), neither);
  EXPECT_EQ(counted(Means{{1, 1, std::nextafter(16.0f, 17.0f), 2, 1}, flat}), a_row);
  EXPECT_EQ(counted(Means{{1, 3, 17, 1}, flat}), a_row) << "of an even number the lower one";
  EXPECT_EQ(counted(Means{flat, {1, 17, 1, 1, 0, 0, 0}}), a_column) << "the median is not the mean";
  EXPECT_EQ(counted(Means{{1, 20, 1}, {1, 20, 1}}), a_column) << "a tie";
  EXPECT_EQ(counted(Means{{0, 0, 5}, {2}}), neither) << "no median to compare with";
  EXPECT_EQ(counted(Means{{1e-38f, 1e-44f, 1e-44f}, flat}), a_row) << "denormals";
  for (float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_EQ(counted(Means{{1, bad, 1}, {1, 99, 1}}), neither);
    EXPECT_EQ(counted(Means{{1, 99, 1}, {1, bad, 1}}), neither);
  }
}

TEST(CountPattern, FindsTheMedianOfManyNumbers) {
  for (int64_t n : {1, 2, 255, 256, 257, 1000}) {
    Floats v = normal(n);
    for (float& f : v) f = f * f;
    Floats sorted = v;
    std::sort(sorted.begin(), sorted.end());
    const float median = sorted[static_cast<size_t>((n - 1) / 2)];
    if (n > 2) v[static_cast<size_t>(n / 3)] = sorted.back();
    v.push_back(0), v.push_back(5 * median), sorted = v;
    std::sort(sorted.begin(), sorted.end());
    const double quotient = static_cast<double>(sorted.back()) / sorted[(sorted.size() - 1) / 2];
    EXPECT_EQ(counted(Means{v, {1}}, std::sqrt(quotient) * (1 - 1e-6)), a_row) << n;
    EXPECT_EQ(counted(Means{v, {1}}, std::sqrt(quotient) * (1 + 1e-6)), neither) << n;
  }
}

TEST(CountPattern, RefusesWhatItCannotRead) {
  const DeviceCopy<float> x(normal()), r(Floats(rows, 0.0f)), c(Floats(cols, 0.0f));
  const DeviceCopy<bf16> b(std::vector<bf16>(rows * cols));
  const DeviceCopy<double> counts(std::vector<double>(3)), four(std::vector<double>(4));
  const Tensor whole = x.tensor({rows, cols});
  const auto squares = [&](const std::vector<Tensor>& xs, const Tensor& to) {
    return refusal([&] { kernels::line_squares(test_queue(), {.xs = xs, .rows = to, .columns = c.flat()}); });
  };
  EXPECT_NE(squares({}, r.flat()).find("1 to 4 matrices"), std::string::npos);
  EXPECT_NE(squares({whole, b.tensor({rows, cols})}, r.flat()).find("one width and type"), std::string::npos);
  EXPECT_NE(squares({whole}, r.range(1, rows)).find("rows must be f32 (96)"), std::string::npos);
  const auto count = [&](const Tensor& to, double ratio) {
    return refusal([&] {
      kernels::count_pattern(test_queue(),
                             {.counts = to, .rows = r.flat(), .columns = c.flat(), .ratio = ratio});
    });
  };
  EXPECT_NE(count(four.flat(), 4).find("counts must be f64 (3)"), std::string::npos);
  EXPECT_NE(count(counts.flat(), 1).find("ratio must be above 1"), std::string::npos);
}
