#include "kernels/round_to_nearest.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/slice.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

Values rounded(const Values& x, int64_t rows, int bits, kernels::RowGrid grid,
               kernels::ClipSearch clip = kernels::ClipSearch::none) {
  TestBed bed;
  const Shape shape{rows, static_cast<int64_t>(x.size()) / rows};
  const Tensor t = make(bed.inputs, shape, DType::f32, x);
  kernels::round_to_nearest(bed.queue, {.y = t, .x = t, .bits = bits, .grid = grid, .clip = clip});
  bed.inputs.check_guards();
  return read(t);
}

double error(const Values& a, const Values& b, double power) {
  double e = 0;
  for (size_t i = 0; i < a.size(); ++i) e += std::pow(std::abs(a[i] - b[i]), power);
  return e;
}

}  // namespace

TEST(RoundToNearest, SymmetricFourBitsHasFifteenLevelsUpToTheRowsMaximum) {
  // scale = 7 / 7 = 1: ties go to even.
  EXPECT_EQ(rounded({7, -7, 0.5, 1.5, 2.4, -3.6, 0, 6.51}, 1, 4, kernels::RowGrid::symmetric),
            (Values{7, -7, 0, 2, 2, -4, 0, 7}));
}

TEST(RoundToNearest, EveryRowHasItsOwnScale) {
  const Values y = rounded({7, 1, 700, 100}, 2, 4, kernels::RowGrid::symmetric);
  EXPECT_EQ(y, (Values{7, 1, 700, 100}));
}

TEST(RoundToNearest, AsymmetricUsesTheWholeRangeOfAPositiveRow) {
  EXPECT_EQ(rounded({0, 1, 14.6, 15}, 1, 4, kernels::RowGrid::asymmetric), (Values{0, 1, 15, 15}));
  EXPECT_EQ(rounded({5, 15}, 1, 4, kernels::RowGrid::asymmetric), (Values{5, 15}))
      << "zero is always on the grid";
}

TEST(RoundToNearest, ZeroRowsStayZeroAndNonFiniteRowsAreNan) {
  EXPECT_EQ(rounded({0, 0, 0}, 1, 4, kernels::RowGrid::symmetric), (Values{0, 0, 0}));
  EXPECT_EQ(rounded({0, 0, 0}, 1, 4, kernels::RowGrid::asymmetric), (Values{0, 0, 0}));
  for (double v : rounded({1, INFINITY}, 1, 8, kernels::RowGrid::symmetric)) EXPECT_TRUE(std::isnan(v));
}

TEST(RoundToNearest, TheClipSearchNeverLosesToNoClippingInItsOwnMeasure) {
  Values x = random_values("clip", 512, DType::f32);
  x[3] = 9;  // an outlier that plain rounding pays for
  const Values plain = rounded(x, 1, 4, kernels::RowGrid::symmetric);
  const Values clipped = rounded(x, 1, 4, kernels::RowGrid::symmetric, kernels::ClipSearch::osp);
  EXPECT_LT(error(clipped, x, 2.4), 0.9 * error(plain, x, 2.4));
}

TEST(RoundToNearest, EightBitsErrIsHalfAStepAtMost) {
  const Values x = random_values("eight", 256, DType::f32), y = rounded(x, 1, 8, kernels::RowGrid::symmetric);
  double largest = 0;
  for (double v : x) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_LE(std::abs(x[i] - y[i]), largest / 127 * 0.501);
}

TEST(RoundToNearest, OnViewsOfAnyWidthIsWhatTheCpuDoes) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {5, 17}, {3, 300}})
      for (const auto& [grid, clip] : {std::pair{kernels::RowGrid::symmetric, kernels::ClipSearch::none},
                                       {kernels::RowGrid::asymmetric, kernels::ClipSearch::none},
                                       {kernels::RowGrid::symmetric, kernels::ClipSearch::osp}}) {
        SCOPED_TRACE(fmt::format("{} {}x{}", name(dtype), rows, cols));
        Slice x(rows, cols, dtype, {1, 2}), y(rows, cols, dtype, {4, 0}), on_cpu(rows, cols, dtype);
        x.fill(1, 3);
        x.set(rows - 1, 0, 40);
        OnDevice on;
        kernels::round_to_nearest(on.queue,
                                  {.y = y.on(on), .x = x.on(on), .bits = 4, .grid = grid, .clip = clip});
        on.fetch();
        kernels::round_to_nearest(
            Queue{}, {.y = on_cpu.on_host(), .x = x.on_host(), .bits = 4, .grid = grid, .clip = clip});
        EXPECT_EQ(y.values(), on_cpu.values());
        EXPECT_TRUE(y.surroundings_intact());
      }
}
