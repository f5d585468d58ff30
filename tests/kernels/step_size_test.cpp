// Learnt step sizes: what quantize() makes of them, and their gradient.

#include "kernels/step_size.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/numerics/step_size.h"
#include "tests/oracle/quantize.h"
#include "tests/support/quantized.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t rows = 5, cols = 1048;  // more than a run, and no multiple of one

struct Case {
  const char* format;
  Element element;
  bool by_row;
};
constexpr Case cases[] = {{"int4_tensor", Element::int4, false},
                          {"int4_row", Element::int4, true},
                          {"int8_tensor", Element::int8, false},
                          {"int8_row", Element::int8, true}};

/// Steps with which some numbers are clipped and some are small.
Floats steps_of(const Case& c) {
  const float fine = c.element == Element::int4 ? 0.2f : 0.01f;
  return c.by_row ? Floats{fine, 2 * fine, 0.7f * fine, -1.0f, 3 * fine} : Floats{fine};
}
double used(const Floats& steps, int64_t row) {
  return std::max(1e-5, static_cast<double>(steps[steps.size() > 1 ? static_cast<size_t>(row) : 0]));
}

/// What x becomes when its rounding is held at step `at` and the step is `step`: a straight line in pieces,
/// whose slope by `step` at `at` is the gradient.
double with_rounding_held(double x, double at, double step, int most) {
  const double q = x / at, clipped = std::clamp(q, -static_cast<double>(most), static_cast<double>(most));
  if (clipped != q) return clipped * step;
  return (x / step + (std::nearbyint(q) - q)) * step;
}

double gradient(const Case& c, const Floats& x, const Floats& dy, const Floats& steps, int64_t row) {
  const int most = c.element == Element::int4 ? 7 : 127;
  double sum = 0;
  for (int64_t r = c.by_row ? row : 0; r < (c.by_row ? row + 1 : rows); ++r)
    for (int64_t k = 0; k < cols; ++k) {
      const auto i = static_cast<size_t>(r * cols + k);
      const double at = used(steps, row), h = 1e-3 * at;
      const auto y = [&](double step) { return with_rounding_held(x[i], at, step, most); };
      sum += static_cast<double>(dy[i]) * (y(at + h) - y(at - h)) / (2 * h);
    }
  return sum;
}

/// Not at a place where the code changes, where fp32 and fp64 may differ.
Floats numbers(const Case& c, uint64_t stream) {
  Floats x = normal(rows * cols, stream);
  const Floats steps = steps_of(c);
  for (size_t i = 0; i < x.size(); ++i) {
    const double step = used(steps, static_cast<int64_t>(i) / cols), q = x[i] / step;
    if (std::abs(q - std::floor(q) - 0.5) < 1e-3) x[i] += static_cast<float>(0.01 * step);
  }
  return x;
}

}  // namespace

TEST(StepSize, QuantizesToMultiplesOfItAndMasksWhatIsClipped) {
  for (const Case& c : cases)
    for (const bool transpose : {false, true})
      for (const DType dtype : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(fmt::format("{} {} {}", c.format, transpose, name(dtype)));
        Floats x = normal(rows * cols, 1), steps = steps_of(c);
        if (dtype == DType::bf16) {
          for (float& v : x) v = to_float(osprey::to_bf16(v));
          for (float& v : steps) v = to_float(osprey::to_bf16(v));
        }
        const DeviceCopy<float> wide(steps), dense(transpose ? transposed(x, rows, cols) : x);
        const DeviceCopy<bf16> half_steps(to_bf16(steps)), half(to_bf16(dense.values()));
        const PackedCopy y(block_format(c.format), rows, cols);
        const DeviceCopy<uint8_t> mask(std::vector<uint8_t>(static_cast<size_t>(rows * cols / 8), 0x5a));
        const Shape shape = transpose ? Shape{cols, rows} : Shape{rows, cols};
        kernels::quantize(test_queue(), {.y = y.packed(),
                                         .x = dtype == DType::bf16 ? half.tensor(shape) : dense.tensor(shape),
                                         .transpose = transpose,
                                         .rule = ScaleRule::lsq,
                                         .mask = mask.tensor({rows, cols / 8}),
                                         .step = dtype == DType::bf16 ? half_steps.flat() : wide.flat()});
        EXPECT_TRUE(y.surroundings_intact() && mask.guards_intact());
        const std::vector<uint8_t> codes = y.codes(), kept = mask.values();
        const double unit = c.element == Element::int4 ? 4 : 64, top = oracle::largest(c.element);
        int64_t clipped = 0;
        for (int64_t r = 0; r < rows; ++r) {
          const auto scale = static_cast<float>(used(steps, r) * unit);
          ASSERT_EQ(bits_float(y.scales()[c.by_row ? static_cast<size_t>(r) : 0]), scale);
          for (int64_t k = 0; k < cols; ++k) {
            const auto i = static_cast<size_t>(r * cols + k);
            const float v = x[i] * (1 / scale);
            ASSERT_EQ(code_at(codes, y.packed().format.bits(), i), oracle::nearest_code(c.element, v)) << i;
            const bool inside = std::abs(static_cast<double>(v)) <= top;
            ASSERT_EQ(kept[i / 8] >> i % 8 & 1, inside) << i;
            clipped += !inside;
          }
        }
        EXPECT_GT(clipped, 20);
      }
}

TEST(StepSize, NansAndStepsWithoutANumberAreNotHidden) {
  const Case& c = cases[1];
  const auto scales = [&](const Floats& x, const Floats& steps) {
    const DeviceCopy<float> dense(x), step(steps);
    const PackedCopy y(block_format(c.format), rows, cols);
    kernels::quantize(
        test_queue(),
        {.y = y.packed(), .x = dense.tensor({rows, cols}), .rule = ScaleRule::lsq, .step = step.flat()});
    Floats s;
    for (const uint32_t bits : y.scales()) s.push_back(bits_float(bits));
    return s;
  };
  Floats x = normal(rows * cols, 2);
  x[cols + 3] = NAN;
  x[2 * cols + 9] = INFINITY;
  const Floats found = scales(x, {1, 1, 1, NAN, INFINITY});
  EXPECT_EQ(found[0], 4.0f);
  for (size_t r = 1; r < 5; ++r) EXPECT_TRUE(std::isnan(found[r])) << r;
}

TEST(StepSize, GradientIsTheSlopeWithTheRoundingHeld) {
  for (const Case& c : cases)
    for (const bool add : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", c.format, add));
      const Floats x = numbers(c, 3), dy = normal(rows * cols, 4), steps = steps_of(c);
      const DeviceCopy<float> dx(x, 1), ddy(dy, 3), step(steps);
      DeviceCopy<float> out(Floats(steps.size(), 7.0f));
      const auto run = [&](int threads) {
        kernels::step_gradient(test_queue(threads), {.dstep = {out.flat(), add},
                                                     .dy = ddy.tensor({rows, cols}),
                                                     .x = dx.tensor({rows, cols}),
                                                     .step = step.flat(),
                                                     .element = c.element,
                                                     .factor = 0.25});
        EXPECT_TRUE(out.guards_intact());
        return out.values();
      };
      const Floats got = run(1);
      for (size_t s = 0; s < steps.size(); ++s) {
        const double want = (add ? 7 : 0) + 0.25 * gradient(c, x, dy, steps, static_cast<int64_t>(s));
        EXPECT_NEAR(got[s], want, 2e-3 * std::max(1.0, std::abs(want))) << s;
      }
      out.set(Floats(steps.size(), 7.0f));
      EXPECT_EQ(run(3), got);
    }
}

TEST(StepSize, GradientReadsBf16AndPartsOfRows) {
  Floats x = normal(rows * cols, 5), dy = normal(rows * cols, 6);
  for (Floats* v : {&x, &dy})
    for (float& f : *v) f = to_float(osprey::to_bf16(f));
  const DeviceCopy<bf16> half(to_bf16(x)), half_dy(to_bf16(dy)), half_step(to_bf16(Floats{0.25f}));
  const DeviceCopy<float> wide(x), wide_dy(dy), step(Floats{0.25f}), a(Floats{0}), b(Floats{0});
  const auto part = [](const Tensor& t) { return t.columns(8, 1000); };
  const auto run = [&](const Tensor& to, const Tensor& dys, const Tensor& xs, const Tensor& steps) {
    kernels::step_gradient(test_queue(), {.dstep = {to}, .dy = part(dys), .x = part(xs), .step = steps});
  };
  run(a.flat(), wide_dy.tensor({rows, cols}), wide.tensor({rows, cols}), step.flat());
  run(b.flat(), half_dy.tensor({rows, cols}), half.tensor({rows, cols}), half_step.flat());
  EXPECT_EQ(a.values(), b.values());
  EXPECT_NE(a[0], 0.0f);
  const DeviceCopy<float> nan(Floats{NAN});
  run(a.flat(), wide_dy.tensor({rows, cols}), wide.tensor({rows, cols}), nan.flat());
  EXPECT_TRUE(std::isnan(a[0]));
}

TEST(StepSize, RefusesWhatHasNoStep) {
  const DeviceCopy<float> x(normal(4 * 32, 7)), step(Floats{1.0f});
  const PackedCopy four(block_format("mxfp4"), 4, 32), whole(block_format("int4_tensor"), 4, 32),
      by_row(block_format("int4_row"), 4, 32), groups(block_format("int4_g32"), 4, 32);
  const auto why = [&](const PackedCopy& y, ScaleRule rule, const Tensor& steps) {
    return refusal([&] {
      kernels::quantize(test_queue(), {.y = y.packed(), .x = x.tensor({4, 32}), .rule = rule, .step = steps});
    });
  };
  EXPECT_NE(why(whole, ScaleRule::lsq, {}).find("rule lsq needs a step"), std::string::npos);
  EXPECT_NE(why(whole, ScaleRule::stats, step.flat()).find("other rules have none"), std::string::npos);
  for (const PackedCopy* y : {&four, &groups})
    EXPECT_NE(why(*y, ScaleRule::lsq, step.flat()).find("one f32 scale of a row or of the matrix"),
              std::string::npos);
  EXPECT_NE(why(by_row, ScaleRule::lsq, step.flat()).find("step"), std::string::npos);
}

TEST(StepSize, StartsAndMovesAsThePaperSays) {
  EXPECT_DOUBLE_EQ(initial_step(Element::int4, 0.5), 1 / std::sqrt(7.0));
  EXPECT_DOUBLE_EQ(initial_step(Element::int8, 0.5), 1 / std::sqrt(127.0));
  EXPECT_DOUBLE_EQ(step_gradient_scale(Element::int4, 100), 1 / std::sqrt(700.0));
}
