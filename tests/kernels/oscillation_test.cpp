#include "kernels/oscillation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"
#include "tests/support/packed_copy.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;

namespace {

/// A matrix whose codes the tests write, and its state.
struct Tracked {
  BlockFormat format;
  int64_t rows, cols;
  PackedCopy y;
  DeviceCopy<uint8_t> last, scales;
  DeviceCopy<float> rate;
  DeviceCopy<double> sums{std::vector<double>{-1, -1}};

  Tracked(std::string_view name, int64_t rows_, int64_t cols_)
      : format(block_format(name)),
        rows(rows_),
        cols(cols_),
        y(format, rows, cols),
        last(std::vector<uint8_t>(static_cast<size_t>(rows * cols))),
        scales(std::vector<uint8_t>(static_cast<size_t>(rows * format.scales_per_row(cols)))),
        rate(std::vector<float>(static_cast<size_t>(rows * cols))) {}
  bool remembers() const { return format.scale != ScaleType::f32; }

  /// One look; `code` of each element and `scale` of each block.
  std::vector<double> look(const std::vector<uint8_t>& code, const std::vector<uint8_t>& scale,
                           int threads = 2) {
    std::vector<uint8_t> bytes(code.size() / 2);
    for (size_t i = 0; i < code.size(); ++i) bytes[i / 2] |= static_cast<uint8_t>(code[i] << i % 2 * 4);
    y.set(bytes, remembers() ? scale : std::vector<uint8_t>{0});
    kernels::track_oscillation(test_queue(threads),
                               {.y = y.packed(),
                                .last = last.tensor({rows, cols}),
                                .rate = rate.tensor({rows, cols}),
                                .scales = remembers() ? scales.tensor(y.packed().scales.shape) : Tensor{},
                                .sums = sums.flat()});
    EXPECT_TRUE(last.guards_intact() && rate.guards_intact() && scales.guards_intact() &&
                sums.guards_intact());
    return sums.values();
  }
};

/// The metric from its definition, one element at a time, on decoded numbers.
struct Oracle {
  bool any = false;
  double number = 0, direction = 0, rate = 0;
  uint8_t scale = 0;
  bool look(Element e, uint8_t code, uint8_t scale_now, bool remembers) {
    const double now = static_cast<double>(decode_element(e, code));
    const bool counts = any && (!remembers || scale_now == scale);
    const double move = counts ? (now > number) - (now < number) : 0;
    const bool back = move * direction < 0;
    if (any) rate = 0.99 * rate + (back ? 0.01 : 0);
    if (move != 0) direction = move;
    any = true, number = now, scale = scale_now;
    return back;
  }
};

}  // namespace

TEST(TrackOscillation, IsItsDefinitionOverManyLooks) {
  for (const char* name : {"mxfp4", "nvfp4", "mxint4", "int4_g64", "int4_row", "int4_tensor"}) {
    SCOPED_TRACE(name);
    const int64_t rows = 5, cols = 192;
    Tracked t(name, rows, cols);
    std::vector<Oracle> oracle(static_cast<size_t>(rows * cols));
    const size_t blocks = static_cast<size_t>(rows * t.format.scales_per_row(cols)),
                 block = oracle.size() / blocks;
    double total = 0;
    for (uint64_t step = 0; step < 40; ++step) {
      std::vector<uint8_t> codes(oracle.size()), scales(blocks);
      for (size_t b = 0; b < blocks; ++b)
        scales[b] = static_cast<uint8_t>(100 + (random_u64(1, b, step) % 4 == 0));
      double oscillated = 0, oscillating = 0;
      for (size_t i = 0; i < codes.size(); ++i) {
        // Most rest, some flip between neighbours, some wander; the most negative integer is never written.
        const uint64_t draw = random_u64(2, i, step);
        codes[i] = static_cast<uint8_t>(i % 3 == 0 ? 3 : i % 3 == 1 ? 2 + draw % 2 : draw % 16);
        if (codes[i] == 8 && t.format.element == Element::int4) codes[i] = 9;
        oscillated += oracle[i].look(t.format.element, codes[i], scales[std::min(i / block, blocks - 1)],
                                     t.remembers());
        oscillating += oracle[i].rate > 0.005;
      }
      const std::vector<double> sums = t.look(codes, scales);
      EXPECT_EQ(sums[0], oscillated) << step;
      EXPECT_EQ(sums[1], oscillating) << step;
      total += oscillated;
    }
    EXPECT_GT(total, 0);
    const std::vector<float> rates = t.rate.values();
    for (size_t i = 0; i < rates.size(); ++i) EXPECT_NEAR(rates[i], oracle[i].rate, 1e-6) << i;
  }
}

TEST(TrackOscillation, AMoveBackCountsAndAMoveOnDoesNot) {
  Tracked t("mxfp4", 1, 32);
  const auto look = [&](uint8_t code, uint8_t scale) {
    return t.look(std::vector<uint8_t>(32, code), std::vector<uint8_t>(1, scale))[0];
  };
  EXPECT_EQ(look(3, 120), 0);
  EXPECT_EQ(look(4, 120), 0) << "the first move has no direction before it";
  EXPECT_EQ(look(5, 120), 0) << "on";
  EXPECT_EQ(look(4, 120), 32) << "and back";
  EXPECT_EQ(look(4, 120), 0) << "rest";
  EXPECT_EQ(look(5, 121), 0) << "another scale";
  EXPECT_EQ(look(5, 120), 0) << "the scale back";
  EXPECT_EQ(look(6, 120), 32) << "the last direction is still down";
}

TEST(TrackOscillation, TheTwoZerosOfE2m1AreOneNumber) {
  Tracked t("mxfp4", 1, 32);
  const std::vector<uint8_t> scale(1, 120);
  for (const uint8_t code : {1, 0, 8, 0, 8})
    EXPECT_EQ(t.look(std::vector<uint8_t>(32, code), scale)[0], 0) << int{code};
  EXPECT_EQ(t.look(std::vector<uint8_t>(32, 1), scale)[0], 32);
}

TEST(TrackOscillation, RefusesOtherWidths) {
  Tracked t("mxfp4", 2, 64);
  const PackedCopy eight(block_format("mxint8"), 2, 64);
  const std::string words = refusal([&] {
    kernels::track_oscillation(test_queue(), {.y = eight.packed(),
                                              .last = t.last.tensor({2, 64}),
                                              .rate = t.rate.tensor({2, 64}),
                                              .scales = t.scales.tensor({2, 2}),
                                              .sums = t.sums.flat()});
  });
  EXPECT_NE(words.find("looks at codes of 4 bits, mxint8 has 8"), std::string::npos) << words;
}
