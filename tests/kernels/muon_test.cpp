#include "kernels/muon.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using kernels::Layout;
using kernels::Momentum;
using test::control;
using test::DeviceCopy;
using test::test_queue;

std::vector<float> draw(int64_t n, uint64_t stream) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = random_normal(3, stream, i);
  return x;
}

std::vector<float> transposed(const std::vector<float>& x, int64_t rows, int64_t cols) {
  std::vector<float> t(x.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      t[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * cols + c)];
  return t;
}

// Widths and beginnings that fit 16-byte accesses and tiles, and such that do not.
struct Place {
  int64_t rows, cols, offset;
};
const Place places[] = {{70, 41, 0}, {64, 128, 0}, {130, 68, 0}, {64, 64, 1}, {1, 3, 0}, {257, 1, 2}};

TEST(MuonKernels, MomentumAccumulatesAndMeasuresTheDirection) {
  for (Momentum form : {Momentum::plain, Momentum::nesterov}) {
    double one_thread = 0;
    for (int threads : {1, 3}) {
      const int64_t rows = 301, cols = 207, n = rows * cols;
      const std::vector<float> before = draw(n, 1), grad = draw(n, 2);
      const DeviceCopy<float> m(before), g(grad);
      const DeviceCopy<double> sum({NAN}), scalars = control({.grad_scale = 0.5});
      kernels::muon_momentum(test_queue(threads), {.momentum = m.tensor({rows, cols}),
                                                   .grad = g.tensor({rows, cols}),
                                                   .beta = 0.9,
                                                   .form = form,
                                                   .sum_of_squares = sum.flat(),
                                                   .control = scalars.flat()});
      const std::vector<float> after = m.values();
      double expected = 0;
      for (size_t i = 0; i < before.size(); ++i) {
        const double m1 = 0.9 * before[i] + 0.5 * grad[i];
        const double u = form == Momentum::plain ? m1 : 0.5 * grad[i] + 0.9 * m1;
        EXPECT_NEAR(after[i], m1, 1e-6);
        expected += u * u;
      }
      EXPECT_NEAR(sum[0], expected, 1e-6 * expected);
      EXPECT_TRUE(m.guards_intact() && g.guards_intact() && sum.guards_intact());
      if (threads == 1)
        one_thread = sum[0];
      else
        EXPECT_EQ(sum[0], one_thread);
    }
  }
}

TEST(MuonKernels, MomentumMayBeginAnywhere) {
  const int64_t n = 5003;
  const DeviceCopy<float> a(draw(n, 1)), ga(draw(n, 2)), b(draw(n, 1), 1), gb(draw(n, 2), 1);
  const DeviceCopy<double> sum_a({0.0}), sum_b({0.0}), scalars = control();
  const auto run = [&](const DeviceCopy<float>& m, const DeviceCopy<float>& g,
                       const DeviceCopy<double>& sum) {
    kernels::muon_momentum(
        test_queue(),
        {.momentum = m.flat(), .grad = g.flat(), .sum_of_squares = sum.flat(), .control = scalars.flat()});
  };
  run(a, ga, sum_a);
  run(b, gb, sum_b);
  EXPECT_EQ(a.values(), b.values());
  EXPECT_EQ(sum_a[0], sum_b[0]);
  EXPECT_TRUE(b.guards_intact());
}

TEST(MuonKernels, DirectionIsScaledCastAndTransposed) {
  for (const auto& [rows, cols, offset] : places) {
    const int64_t n = rows * cols;
    const std::vector<float> m = draw(n, 1), g = draw(n, 2);
    // safety |u| is 8.
    const DeviceCopy<double> sum({16.0}), scalars = control({.grad_scale = 0.5});
    const DeviceCopy<float> momentum(m, offset), grad(g, offset);
    const DeviceCopy<bf16> x(std::vector<bf16>(m.size()), offset), xt(std::vector<bf16>(m.size()), offset);
    const DeviceCopy<float> y(std::vector<float>(m.size()), offset), yt(std::vector<float>(m.size()), offset);
    const auto run = [&](Tensor out, Layout layout) {
      kernels::muon_direction(test_queue(), {.x = out,
                                             .momentum = momentum.tensor({rows, cols}),
                                             .grad = grad.tensor({rows, cols}),
                                             .beta = 0.9,
                                             .form = Momentum::nesterov,
                                             .sum_of_squares = sum.flat(),
                                             .safety = 2,
                                             .layout = layout,
                                             .control = scalars.flat()});
    };
    run(x.tensor({rows, cols}), Layout::same);
    run(xt.tensor({cols, rows}), Layout::transposed);
    run(y.tensor({rows, cols}), Layout::same);
    run(yt.tensor({cols, rows}), Layout::transposed);
    const std::vector<float> wide = y.values();
    for (size_t i = 0; i < m.size(); ++i) EXPECT_NEAR(wide[i], 0.125 * (0.5 * g[i] + 0.9 * m[i]), 1e-6);
    EXPECT_EQ(yt.values(), transposed(wide, rows, cols)) << rows << " x " << cols;
    const std::vector<bf16> narrow = x.values(), narrow_t = xt.values();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(r * cols + c), j = static_cast<size_t>(c * rows + r);
        ASSERT_EQ(narrow[i].bits, to_bf16(wide[i]).bits) << rows << " x " << cols;
        ASSERT_EQ(narrow_t[j].bits, narrow[i].bits) << rows << " x " << cols;
      }
    EXPECT_TRUE(x.guards_intact() && xt.guards_intact() && y.guards_intact() && yt.guards_intact());
  }
}

TEST(MuonKernels, PlainDirectionsAreTheMomentum) {
  const std::vector<float> m = draw(35, 1);
  const DeviceCopy<float> momentum(m), grad(draw(35, 2)), x(std::vector<float>(35));
  const DeviceCopy<double> sum({4.0}), scalars = control({.grad_scale = 0.5});
  kernels::muon_direction(test_queue(), {.x = x.tensor({5, 7}),
                                         .momentum = momentum.tensor({5, 7}),
                                         .grad = grad.tensor({5, 7}),
                                         .form = Momentum::plain,
                                         .sum_of_squares = sum.flat(),
                                         .control = scalars.flat()});
  const std::vector<float> after = x.values();
  for (size_t i = 0; i < m.size(); ++i) EXPECT_EQ(after[i], 0.5f * m[i]);
}

TEST(MuonKernels, ADirectionWithoutLengthIsZero) {
  for (double squares : {0.0, 0.9e-60}) {
    const DeviceCopy<float> momentum(std::vector<float>(12, 1e-31f)), grad(std::vector<float>(12)),
        x(std::vector<float>(12, 5.0f));
    const DeviceCopy<double> sum({squares}), scalars = control();
    kernels::muon_direction(test_queue(), {.x = x.tensor({3, 4}),
                                           .momentum = momentum.tensor({3, 4}),
                                           .grad = grad.tensor({3, 4}),
                                           .sum_of_squares = sum.flat(),
                                           .control = scalars.flat()});
    EXPECT_EQ(x.values(), std::vector<float>(12));
  }
}

TEST(MuonKernels, UpdateStepsDecaysAndRounds) {
  for (const auto& [rows, cols, offset] : places) {
    const int64_t n = rows * cols;
    const std::vector<float> start = draw(n, 1), direction = draw(n, 2);
    const DeviceCopy<double> scalars = control({.learning_rate_factor = 0.5});
    std::vector<float> first;
    for (Layout layout : {Layout::same, Layout::transposed})
      for (DType dtype : {DType::f32, DType::bf16}) {
        const std::vector<float> wide =
            layout == Layout::same ? direction : transposed(direction, rows, cols);
        std::vector<bf16> narrow(wide.size());
        for (size_t i = 0; i < wide.size(); ++i) narrow[i] = to_bf16(wide[i]);
        const DeviceCopy<float> x32(wide, offset), p(start, offset);
        const DeviceCopy<bf16> x16(narrow, offset), value(std::vector<bf16>(start.size()), offset);
        const Shape shape = layout == Layout::same ? Shape{rows, cols} : Shape{cols, rows};
        kernels::muon_update(test_queue(), {.value = value.tensor({rows, cols}),
                                            .master = p.tensor({rows, cols}),
                                            .x = dtype == DType::f32 ? x32.tensor(shape) : x16.tensor(shape),
                                            .step_size = 0.02,
                                            .decay = 0.002,
                                            .layout = layout,
                                            .control = scalars.flat()});
        const std::vector<float> after = p.values();
        const std::vector<bf16> rounded = value.values();
        for (size_t i = 0; i < start.size(); ++i) {
          const float x = dtype == DType::f32 ? direction[i] : to_float(to_bf16(direction[i]));
          ASSERT_NEAR(after[i], start[i] - 0.001 * start[i] - 0.01 * x, 1e-6) << rows << " x " << cols;
          ASSERT_EQ(rounded[i].bits, to_bf16(after[i]).bits);
        }
        EXPECT_TRUE(p.guards_intact() && value.guards_intact());
        if (dtype != DType::f32) continue;
        if (first.empty()) first = after;
        EXPECT_EQ(after, first) << "layouts differ at " << rows << " x " << cols;
      }
  }
}

TEST(MuonKernels, Fp32ParametersAreTheirOwnMaster) {
  const DeviceCopy<float> p(draw(35, 1)), q(draw(35, 1)), x(draw(35, 2));
  const DeviceCopy<bf16> value(std::vector<bf16>(35));
  const DeviceCopy<double> scalars = control();
  kernels::MuonUpdate a{.value = value.tensor({5, 7}),
                        .master = p.tensor({5, 7}),
                        .x = x.tensor({5, 7}),
                        .step_size = 0.1,
                        .control = scalars.flat()};
  kernels::muon_update(test_queue(), a);
  a.value = a.master = q.tensor({5, 7});
  kernels::muon_update(test_queue(), a);
  EXPECT_EQ(p.values(), q.values());
}

TEST(MuonKernels, AStepThatIsNotAppliedChangesNothing) {
  const std::vector<float> m = draw(35, 1), p = draw(35, 2);
  const DeviceCopy<float> momentum(m), master(p), nan(std::vector<float>(35, NAN));
  const DeviceCopy<double> sum({NAN}), scalars = control({.apply = 0});
  kernels::muon_momentum(test_queue(), {.momentum = momentum.flat(),
                                        .grad = nan.flat(),
                                        .sum_of_squares = sum.flat(),
                                        .control = scalars.flat()});
  kernels::muon_update(test_queue(), {.value = master.tensor({5, 7}),
                                      .master = master.tensor({5, 7}),
                                      .x = nan.tensor({5, 7}),
                                      .step_size = 1,
                                      .control = scalars.flat()});
  EXPECT_EQ(momentum.values(), m);
  EXPECT_EQ(master.values(), p);
  EXPECT_EQ(sum[0], 0);
}

TEST(MuonKernels, WrongShapesAreNamed) {
  const DeviceCopy<float> a(std::vector<float>(12)), b(std::vector<float>(12));
  const DeviceCopy<double> sum({0.0}), scalars = control();
  kernels::MuonDirection direction{.x = a.tensor({3, 4}),
                                   .momentum = b.tensor({3, 4}),
                                   .grad = b.tensor({3, 4}),
                                   .sum_of_squares = sum.flat(),
                                   .layout = Layout::transposed,
                                   .control = scalars.flat()};
  try {
    kernels::muon_direction(test_queue(), direction);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[muon_direction] x must be contiguous f32 or bf16 (4, 3), got f32 (3, 4)");
  }
  direction.layout = Layout::same;
  direction.sum_of_squares = a.range(0, 1);
  EXPECT_THROW(kernels::muon_direction(test_queue(), direction), Error);
  direction.sum_of_squares = sum.flat();
  direction.control = sum.flat();
  EXPECT_THROW(kernels::muon_direction(test_queue(), direction), Error);
}

}  // namespace
}  // namespace osprey
