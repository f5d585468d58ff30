#include "kernels/muon.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

using kernels::Layout;
using kernels::Momentum;

std::vector<float> draw(int64_t n, uint64_t stream) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = random_normal(3, stream, i);
  return x;
}
Tensor matrix(std::vector<float>& x, int64_t rows, int64_t cols) {
  return make_tensor(x.data(), {rows, cols}, DType::f32);
}

TEST(MuonKernels, MomentumAccumulatesAndMeasuresTheDirection) {
  for (Momentum form : {Momentum::plain, Momentum::nesterov}) {
    double one_thread = 0;
    for (int threads : {1, 3}) {
      const int64_t rows = 301, cols = 207, n = rows * cols;
      std::vector<float> m = draw(n, 1), g = draw(n, 2);
      const std::vector<float> before = m;
      double sum = 0, expected = 0;
      kernels::muon_momentum(Queue{.device = {}, .threads = threads}, {.momentum = matrix(m, rows, cols),
                                                                       .grad = matrix(g, rows, cols),
                                                                       .beta = 0.9,
                                                                       .grad_scale = 0.5,
                                                                       .form = form,
                                                                       .sum_of_squares = &sum});
      for (size_t i = 0; i < m.size(); ++i) {
        const double m1 = 0.9 * before[i] + 0.5 * g[i];
        const double u = form == Momentum::plain ? m1 : 0.5 * g[i] + 0.9 * m1;
        EXPECT_NEAR(m[i], m1, 1e-6);
        expected += u * u;
      }
      EXPECT_NEAR(sum, expected, 1e-6 * expected);
      if (threads == 1)
        one_thread = sum;
      else
        EXPECT_EQ(sum, one_thread);
    }
  }
}

TEST(MuonKernels, DirectionIsScaledCastAndTransposed) {
  const int64_t rows = 70, cols = 41, n = rows * cols;
  std::vector<float> m = draw(n, 1), g = draw(n, 2);
  std::vector<bf16> x(static_cast<size_t>(n)), xt(static_cast<size_t>(n));
  std::vector<float> y(static_cast<size_t>(n)), yt(static_cast<size_t>(n));
  const auto run = [&](Tensor out, Layout layout) {
    kernels::muon_direction(Queue{.device = {}, .threads = 2}, {.x = out,
                                                                .momentum = matrix(m, rows, cols),
                                                                .grad = matrix(g, rows, cols),
                                                                .beta = 0.9,
                                                                .grad_scale = 0.5,
                                                                .form = Momentum::nesterov,
                                                                .scale = 0.125,
                                                                .layout = layout});
  };
  run(make_tensor(x.data(), {rows, cols}, DType::bf16), Layout::same);
  run(make_tensor(xt.data(), {cols, rows}, DType::bf16), Layout::transposed);
  run(matrix(y, rows, cols), Layout::same);
  run(matrix(yt, cols, rows), Layout::transposed);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const size_t i = static_cast<size_t>(r * cols + c), j = static_cast<size_t>(c * rows + r);
      EXPECT_NEAR(y[i], 0.125 * (0.5 * g[i] + 0.9 * m[i]), 1e-6);
      EXPECT_NEAR(yt[j], y[i], 1e-7);
      EXPECT_NEAR(to_float(x[i]), y[i], 0.004 * std::abs(y[i]) + 1e-7);
      EXPECT_NEAR(to_float(xt[j]), y[i], 0.004 * std::abs(y[i]) + 1e-7);
    }
}

TEST(MuonKernels, UpdateStepsDecaysAndRounds) {
  const int64_t rows = 70, cols = 41, n = rows * cols;
  const std::vector<float> start = draw(n, 1);
  std::vector<float> x = draw(n, 2), xt(x.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      xt[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * cols + c)];
  for (Layout layout : {Layout::same, Layout::transposed}) {
    std::vector<float> p = start;
    std::vector<bf16> value(p.size());
    kernels::muon_update(Queue{.device = {}, .threads = 2},
                         {.value = make_tensor(value.data(), {rows, cols}, DType::bf16),
                          .master = matrix(p, rows, cols),
                          .x = layout == Layout::same ? matrix(x, rows, cols) : matrix(xt, cols, rows),
                          .step_size = 0.01,
                          .decay = 0.001,
                          .layout = layout});
    for (size_t i = 0; i < p.size(); ++i) {
      EXPECT_NEAR(p[i], start[i] - 0.001 * start[i] - 0.01 * x[i], 1e-6);
      EXPECT_EQ(value[i].bits, to_bf16(p[i]).bits);
    }
  }
}

TEST(MuonKernels, WrongShapesAreNamed) {
  std::vector<float> a(12), b(12);
  try {
    kernels::muon_direction({}, {.x = matrix(a, 3, 4),
                                 .momentum = matrix(b, 3, 4),
                                 .grad = matrix(b, 3, 4),
                                 .layout = Layout::transposed});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[muon_direction] x must be contiguous f32 or bf16 (4, 3), got f32 (3, 4)");
  }
}

}  // namespace
}  // namespace osprey
