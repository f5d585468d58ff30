// Which weights stand still in an update.

#include "kernels/freezing.h"

#include <gtest/gtest.h>

#include "tests/oracle/quantize.h"
#include "tests/support/quantized.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;

namespace {

/// From the list of all numbers of an element.
double margin(Element e, double v) {
  std::vector<double> numbers;
  for (const uint32_t code : oracle::positive_codes(e)) numbers.push_back(oracle::code_values(e)[code]);
  std::sort(numbers.begin(), numbers.end());
  const double a = std::abs(v);
  if (a > numbers.back()) return 1;
  for (size_t i = 1; i < numbers.size(); ++i)
    if (a <= numbers[i]) return std::abs((a - numbers[i - 1]) / (numbers[i] - numbers[i - 1]) - 0.5);
  return 1;
}

/// A weight that was quantized, and a piece of it that an optimizer updates.
struct Piece {
  int64_t rows = 6, cols = 96, first, count;
  Floats weights;
  Quantized quantized;
  DeviceCopy<float> master, grad, held;
  DeviceCopy<double> step{std::vector<double>{0}}, frozen{std::vector<double>{-1}};

  Piece(std::string_view format, int64_t first_, int64_t count_, ScaleRule rule = ScaleRule::even)
      : first(first_),
        count(count_),
        weights(uneven(rows, cols, 3)),
        quantized(format, rows, cols, weights, {.rule = rule}),
        master(part(weights), 1),
        grad(Floats(static_cast<size_t>(count), 2.0f)),
        held(Floats(static_cast<size_t>(count), -5.0f)) {}
  Floats part(const Floats& all) const { return {all.begin() + first, all.begin() + first + count}; }
  void hold(const FreezeSchedule& schedule, double at, int threads = 2) {
    step.set({at});
    kernels::hold_frozen(test_queue(threads), {.held = held.flat(),
                                               .grad = grad.flat(),
                                               .master = master.flat(),
                                               .y = quantized.packed(),
                                               .first = first,
                                               .schedule = schedule,
                                               .step = step.flat(),
                                               .frozen = frozen.flat()});
    EXPECT_TRUE(held.guards_intact() && grad.guards_intact() && master.guards_intact() &&
                frozen.guards_intact());
  }
  /// What element i of the piece is multiplied by before it is rounded.
  float inverse(size_t i) const {
    const Packed& y = quantized.packed();
    const int64_t at = first + static_cast<int64_t>(i), row = at / cols, col = at % cols;
    const BlockFormat& f = y.format;
    const int64_t place = f.granularity == Granularity::tensor ? 0
                          : f.granularity == Granularity::row  ? row
                                                               : row * (cols / f.block) + col / f.block;
    return inverse_scale(f.scale, quantized.result().scales[static_cast<size_t>(place)],
                         f.scale == ScaleType::e4m3 ? quantized.result().tensor_scale : 1);
  }
};

}  // namespace

TEST(Freezing, TheMarginIsTheDistanceToTheNextRounding) {
  for (const Element e : {Element::e2m1, Element::e2m3, Element::e3m2, Element::e4m3, Element::e5m2,
                          Element::int4, Element::int8}) {
    const ElementLayout l = element_layout(e);
    for (int i = 0; i < 20000; ++i) {
      const double part = static_cast<double>(i) / 16000;
      for (const double sign : {1.0, -1.0}) {
        const auto v = static_cast<float>(sign * part * part * static_cast<double>(l.largest));
        ASSERT_NEAR(rounding_margin(l, v), margin(e, v), 1e-5) << static_cast<int>(e) << " " << v;
      }
    }
    // At every code the next rounding is half a step away, and at every place between two it is there.
    const std::vector<uint32_t> codes = oracle::positive_codes(e);
    for (size_t i = 0; i + 1 < codes.size(); ++i) {
      const double a = oracle::code_values(e)[codes[i]], b = oracle::code_values(e)[codes[i + 1]];
      EXPECT_EQ(rounding_margin(l, static_cast<float>(b)), 0.5f);
      EXPECT_EQ(rounding_margin(l, static_cast<float>((a + b) / 2)), 0.0f);
    }
    EXPECT_EQ(rounding_margin(l, NAN), 1.0f);
  }
}

TEST(Freezing, TheBoundaryGoesDownInALine) {
  const FreezeSchedule s{.begin = 10, .anneal = 4, .last = 0.1};
  EXPECT_EQ(freeze_boundary(s, 9), 1.0f) << "nothing stands still before";
  EXPECT_FLOAT_EQ(freeze_boundary(s, 10), 0.5f);
  EXPECT_FLOAT_EQ(freeze_boundary(s, 11), 0.4f);
  EXPECT_FLOAT_EQ(freeze_boundary(s, 14), 0.1f);
  EXPECT_FLOAT_EQ(freeze_boundary(s, 99), 0.1f);
  EXPECT_FLOAT_EQ(freeze_boundary({.begin = 10, .anneal = 0, .last = 0.1}, 10), 0.1f);
}

TEST(Freezing, HoldsWhatIsFarFromRoundingElsewhereInEveryFormat) {
  for (const NamedFormat& named : block_formats()) {
    if (named.format.granularity == Granularity::block && 96 % named.format.block != 0) continue;
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 6 * 96}, {96 + 17, 301}}) {
      SCOPED_TRACE(fmt::format("{} from {}", named.name, first));
      Piece p(named.name, first, count);
      p.hold({.begin = 0, .anneal = 0, .last = 0.2}, 3);
      const Floats held = p.held.values(), grad = p.grad.values(), master = p.part(p.weights);
      double frozen = 0, moving = 0;
      for (size_t i = 0; i < held.size(); ++i) {
        const double m = margin(named.format.element, static_cast<double>(master[i] * p.inverse(i)));
        const bool stands = !std::isnan(held[i]);
        ASSERT_TRUE(stands == (m > 0.2) || std::abs(m - 0.2) < 1e-5) << i;
        ASSERT_TRUE(!stands || held[i] == master[i]) << i;
        ASSERT_EQ(grad[i], stands ? 0.0f : 2.0f) << i;
        (stands ? frozen : moving) += 1;
      }
      EXPECT_EQ(p.frozen[0], frozen);
      EXPECT_GT(frozen, 30);
      EXPECT_GT(moving, 5);
    }
  }
}

TEST(Freezing, WhatMayMoveIsWhatASmallStepWouldRoundElsewhere) {
  Piece p("mxint4", 0, 6 * 96);
  p.hold({.last = 0.05}, 0);
  const Floats held = p.held.values();
  for (size_t i = 0; i < held.size(); ++i) {
    const float v = p.weights[i] * p.inverse(i), most = 0.049f / 4, more = 0.051f / 4;  // codes are 1/4 apart
    const auto code = [](float x) { return encode_nearest(Element::int4, x); };
    if (std::isnan(held[i]))
      ASSERT_TRUE(code(v + more) != code(v) || code(v - more) != code(v)) << v;
    else
      ASSERT_TRUE(code(v + most) == code(v) && code(v - most) == code(v)) << v;
  }
}

TEST(Freezing, RestoresMastersAndValuesOfWhatStandsStill) {
  const Floats held = {1.00390625f, NAN, -3, NAN};
  for (const bool half : {false, true}) {
    const DeviceCopy<float> kept(held), master(Floats{9, 8, 7, 6}), value(Floats{9, 8, 7, 6});
    const DeviceCopy<bf16> narrow(to_bf16({9, 8, 7, 6}));
    kernels::restore_frozen(
        test_queue(),
        {.value = half ? narrow.flat() : value.flat(), .master = master.flat(), .held = kept.flat()});
    EXPECT_EQ(master.values(), (Floats{1.00390625f, 8, -3, 6}));
    Floats got = value.values(), want = master.values();
    if (half) {
      got.clear();
      for (const bf16 v : narrow.values()) got.push_back(to_float(v));
      for (float& v : want) v = to_float(osprey::to_bf16(v));
    }
    EXPECT_EQ(got, want);
  }
}

TEST(Freezing, RefusesAPieceOutsideOfTheMatrix) {
  Piece p("mxfp4", 5 * 96, 96);
  p.first = 5 * 96 + 1;
  EXPECT_NE(refusal([&] { p.hold({}, 0); }).find("elements 481 to 577 are not all of a matrix of 6 x 96"),
            std::string::npos);
}
