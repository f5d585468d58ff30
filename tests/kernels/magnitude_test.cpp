#include "kernels/magnitude.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/refusal.h"
#include "tests/support/slice.h"

using namespace osprey;
using namespace osprey::test;

namespace {

struct Size {
  int64_t rows, cols;
  Layout layout;
};
/// One row, more rows than a GPU has chunks for, more columns than a block takes, odd ones with surroundings.
const std::vector<Size> sizes = {
    {1, 1, {}}, {300, 70, {}}, {7, 520, {16, 8}}, {29, 17, {0, 3}}, {5, 1030, {1, 7}}};

std::string text(const Size& s, DType dtype) {
  return fmt::format("{} {}x{} + {} + {}", name(dtype), s.rows, s.cols, s.layout.before, s.layout.after);
}

}  // namespace

TEST(RowNormsKernel, AgreesWithDoublesOnViews) {
  for (const Size& s : sizes) {
    SCOPED_TRACE(text(s, DType::f32));
    Slice x(s.rows, s.cols, DType::f32, s.layout), norms(1, s.rows, DType::f32);
    x.fill(1, 3);
    for (int64_t c = 0; c < s.cols; ++c) x.set(s.rows - 1, c, 0);
    OnDevice on;
    kernels::row_norms(on.queue, {.norms = norms.vector_on(on), .x = x.on(on)});
    on.fetch();
    for (int64_t r = 0; r < s.rows; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < s.cols; ++c) sum += x.get(r, c) * x.get(r, c);
      EXPECT_NEAR(norms.get(0, r), std::sqrt(sum), 1e-6 * std::sqrt(sum));
    }
    EXPECT_TRUE(norms.surroundings_intact());
  }
}

TEST(LengthKernels, AgreeWithDoublesOnViews) {
  for (const Size& s : sizes)
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const bool add : {false, true}) {
        SCOPED_TRACE(text(s, dtype));
        Slice y(s.rows, s.cols, dtype, s.layout), dy(s.rows, s.cols, dtype, {3, 5}),
            base(1, s.cols, DType::f32), norm(1, s.cols, DType::f32), change(1, s.cols, dtype),
            dchange(1, s.cols, DType::f32);
        y.fill(1), dy.fill(2), base.fill(3), norm.fill(4), change.fill(5), dchange.fill(6);
        // A row of zeros, and a length that the change takes away.
        norm.set(0, 0, 0);
        base.set(0, s.cols - 1, 0.5), change.set(0, s.cols - 1, -0.5);
        const auto before = y.values(), sums = dchange.values();
        OnDevice on;
        kernels::scale_lengths(on.queue, {.y = y.on(on),
                                          .base = base.vector_on(on),
                                          .norm = norm.vector_on(on),
                                          .change = change.vector_on(on)});
        kernels::length_gradient(on.queue, {.dchange = {dchange.vector_on(on), add},
                                            .dy = dy.on(on),
                                            .y = y.on(on),
                                            .base = base.vector_on(on),
                                            .change = change.vector_on(on)});
        on.fetch();
        std::vector<double> scaled = before, want(static_cast<size_t>(s.cols));
        for (int64_t c = 0; c < s.cols; ++c) {
          const double length = base.get(0, c) + change.get(0, c), n = norm.get(0, c);
          double sum = 0;
          for (int64_t r = 0; r < s.rows; ++r) {
            scaled[static_cast<size_t>(r * s.cols + c)] *= n == 0 ? 0 : length / n;
            sum += dy.get(r, c) * y.get(r, c);
          }
          const auto at = static_cast<size_t>(c);
          want[at] = (add ? sums[at] : 0) + (length == 0 ? 0 : sum / length);
        }
        EXPECT_LT(worst_error(y.values(), scaled), dtype == DType::bf16 ? 4e-3 : 1e-6);
        EXPECT_LT(worst_error(dchange.values(), want), 1e-5);
        EXPECT_TRUE(y.surroundings_intact() && dchange.surroundings_intact());
      }
}

TEST(LengthKernels, NameWhatDoesNotFit) {
  Slice y(4, 8, DType::f32), base(1, 8, DType::f32), few(1, 7, DType::f32);
  OnDevice on;
  const auto said = test::refusal([&] {
    kernels::scale_lengths(
        on.queue,
        {.y = y.on(on), .base = base.vector_on(on), .norm = few.vector_on(on), .change = base.vector_on(on)});
  });
  EXPECT_NE(said.find("[scale_lengths] norm must be 8 contiguous elements of f32 on"), std::string::npos)
      << said;
}
