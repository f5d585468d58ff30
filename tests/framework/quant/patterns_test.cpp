#include "framework/quant/patterns.h"

#include <gtest/gtest.h>

#include "framework/config/dumper.h"
#include "framework/config/reader.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;
using enum OutlierPattern;

namespace {

LayerPatterns layer(OutlierPattern x, OutlierPattern w, OutlierPattern dy) {
  LayerPatterns l;
  l.x[static_cast<size_t>(x)] = l.w[static_cast<size_t>(w)] = l.dy[static_cast<size_t>(dy)] = 5;
  return l;
}

}  // namespace

TEST(Patterns, TheMajorityDecidesAndTiesAreCautious) {
  EXPECT_EQ(majority({0, 0, 0}), none);
  EXPECT_EQ(majority({3, 2, 2}), row);
  EXPECT_EQ(majority({2, 3, 2}), column);
  EXPECT_EQ(majority({3, 1, 3}), none);
  EXPECT_EQ(majority({1, 3, 3}), none);
  EXPECT_EQ(majority({3, 3, 2}), column);
}

TEST(Patterns, AProductIsRotatedWhereAnOperandHasItsOutliersInFewColumnsOfWhatIsSummed) {
  EXPECT_EQ(layer(none, none, none).wanted(), (RotatedProducts{false, false, false}));
  EXPECT_EQ(layer(column, none, none).wanted(), (RotatedProducts{true, false, false}));
  EXPECT_EQ(layer(row, none, none).wanted(), (RotatedProducts{false, true, false}));
  EXPECT_EQ(layer(none, column, none).wanted(), (RotatedProducts{true, false, false}));
  EXPECT_EQ(layer(none, row, none).wanted(), (RotatedProducts{false, false, true}));
  EXPECT_EQ(layer(none, none, column).wanted(), (RotatedProducts{false, false, true}));
  EXPECT_EQ(layer(none, none, row).wanted(), (RotatedProducts{false, true, false}));
  EXPECT_EQ(layer(column, row, row).wanted(), (RotatedProducts{true, true, true}));
}

TEST(Patterns, RowsAreExtractedWhereTheLeftOperandHasItsOutliersInRows) {
  EXPECT_EQ(layer(none, row, none).extracted(), (ExtractedProducts{false, false}));
  EXPECT_EQ(layer(column, row, column).extracted(), (ExtractedProducts{false, false}));
  EXPECT_EQ(layer(row, none, column).extracted(), (ExtractedProducts{true, false}));
  EXPECT_EQ(layer(none, none, row).extracted(), (ExtractedProducts{false, true}));
  EXPECT_EQ(LayerPatterns{}.extracted(), (ExtractedProducts{false, false})) << "without votes";
}

TEST(Patterns, StateReadsBackTheSameAndRefusesWhatIsNone) {
  LayerPatterns l{.weight = "layers.3.attn.q.weight", .x = {1, 2, 3}, .w = {0, 0, 6}, .dy = {6, 0, 0}};
  const auto again = [](const LayerPatterns& p) { return read_spec<LayerPatterns>(dump_spec(p), "state"); };
  EXPECT_EQ(again(l), l);
  l.decided = true;
  l.rotated = {false, true, false};
  EXPECT_EQ(again(l), l);
  EXPECT_EQ(l.votes(), 6);
  const auto words = [](const char* yaml) {
    return refusal([&] { read_spec<LayerPatterns>(yaml, "state"); });
  };
  EXPECT_NE(words("{weight: a, x: [1, 2]}").find("x: must be three counts"), std::string::npos);
  EXPECT_NE(words("{weight: a, w: [1, 2, 0.5]}").find("w: must be three counts"), std::string::npos);
  EXPECT_NE(words("{weight: a, dy: [1, 2, -1]}").find("dy"), std::string::npos);
  EXPECT_NE(words("{weight: a, forward: true}").find("decided is true"), std::string::npos);
}
