#include "framework/finetune/leading_subspace.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using Side = Subspace::Side;
using test::DeviceCopy;
using test::test_queue;

/// Rows x cols with singular values that fall like 1 / (1 + i / 4).
std::vector<float> decaying(int64_t rows, int64_t cols) {
  const int64_t terms = std::min(rows, cols);
  const std::vector<float> u = random_subspace(terms, rows, 1, 1), v = random_subspace(terms, cols, 1, 2);
  std::vector<float> g(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < terms; ++k)
        sum += static_cast<double>(u[static_cast<size_t>(k * rows + i)]) *
               static_cast<double>(v[static_cast<size_t>(k * cols + j)]) / (1 + static_cast<double>(k) / 4);
      g[static_cast<size_t>(i * cols + j)] = static_cast<float>(sum);
    }
  return g;
}

/// |basis G|^2 / |G|^2 for the left side, |G basis^T|^2 / |G|^2 for the right one.
double captured(const std::vector<float>& g, int64_t rows, int64_t cols, const std::vector<float>& basis,
                int64_t rank, Side side) {
  double all = 0, kept = 0;
  for (const float x : g) all += static_cast<double>(x) * x;
  const int64_t along = side == Side::left ? rows : cols, across = side == Side::left ? cols : rows;
  for (int64_t k = 0; k < rank; ++k)
    for (int64_t j = 0; j < across; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < along; ++i)
        sum += static_cast<double>(basis[static_cast<size_t>(k * along + i)]) *
               static_cast<double>(g[static_cast<size_t>(side == Side::left ? i * cols + j : j * cols + i)]);
      kept += sum * sum;
    }
  return kept / all;
}

void expect_orthonormal(const std::vector<float>& basis, int64_t rank) {
  const size_t cols = basis.size() / static_cast<size_t>(rank);
  for (size_t i = 0; i < static_cast<size_t>(rank); ++i)
    for (size_t j = 0; j <= i; ++j) {
      double dot = 0;
      for (size_t k = 0; k < cols; ++k) dot += static_cast<double>(basis[i * cols + k]) * basis[j * cols + k];
      EXPECT_NEAR(dot, i == j ? 1 : 0, 1e-5) << i << " " << j;
    }
}

TEST(LeadingSubspace, TheRangeFinderKeepsAsMuchAsTheExactDecomposition) {
  const std::pair<int64_t, int64_t> shapes[] = {{60, 40}, {40, 60}, {48, 48}};
  for (const auto& [rows, cols] : shapes)
    for (const Side side : {Side::left, Side::right}) {
      const std::vector<float> values = decaying(rows, cols);
      const DeviceCopy<float> g(values);
      LeadingSubspace args{
          .gradient = g.tensor({rows, cols}), .side = side, .rank = 8, .exact = true, .seed = 3};
      const std::vector<float> exact = leading_subspace(test_queue(), args);
      args.exact = false;
      const std::vector<float> found = leading_subspace(test_queue(), args);
      expect_orthonormal(exact, 8);
      expect_orthonormal(found, 8);
      const double best = captured(values, rows, cols, exact, 8, side);
      double squares = 0, leading = 0;
      for (int64_t k = 0; k < std::min(rows, cols); ++k) {
        const double s = 1 / (1 + static_cast<double>(k) / 4);
        squares += s * s;
        leading += k < 8 ? s * s : 0;
      }
      EXPECT_NEAR(best, leading / squares, 1e-4);
      EXPECT_GT(captured(values, rows, cols, found, 8, side), 0.99 * best);
      EXPECT_EQ(found, leading_subspace(test_queue(), args)) << "not the same bits twice";
    }
}

TEST(LeadingSubspace, AGradientOfLowRankIsKeptWhole) {
  const int64_t rows = 30, cols = 20;
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      values[static_cast<size_t>(i * cols + j)] =
          random_normal(1, 1, static_cast<uint64_t>(i)) * random_normal(1, 2, static_cast<uint64_t>(j));
  const DeviceCopy<float> g(values);
  for (const bool exact : {false, true}) {
    const auto basis = leading_subspace(
        test_queue(), {.gradient = g.tensor({rows, cols}), .side = Side::right, .rank = 4, .exact = exact});
    ASSERT_EQ(basis.size(), 4u * 20u);
    EXPECT_NEAR(captured(values, rows, cols, basis, 4, Side::right), 1, 1e-5);
    expect_orthonormal(basis, 4);
  }
}

TEST(LeadingSubspace, AGradientWithoutAnyGivesNothing) {
  std::vector<float> values(12 * 8);
  for (const float x : {0.0f, NAN, INFINITY}) {
    values[5] = x;
    const DeviceCopy<float> g(values);
    for (const bool exact : {false, true})
      EXPECT_TRUE(
          leading_subspace(test_queue(), {.gradient = g.tensor({12, 8}), .rank = 2, .exact = exact}).empty());
  }
}

TEST(LeadingSubspace, SignsFollowTheBasisBefore) {
  const std::vector<float> before = random_subspace(3, 10, 1, 1);
  std::vector<float> turned = before;
  for (size_t i = 10; i < 20; ++i) turned[i] = -turned[i];
  align_signs(turned, before, 3);
  EXPECT_EQ(turned, before);
}

}  // namespace
}  // namespace osprey
