#include "framework/scaling/grid.h"

#include <gtest/gtest.h>

#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::refusal;

/// Parameters of the blocks: attention and MLP.
int64_t blocks(const ModelScale& m) {
  const int64_t head = 64, kv = m.kv_heads * head, q = m.heads * head;
  return m.layers * m.hidden_size * (2 * q + 2 * kv + 3 * m.ffn_size);
}

const ModelScale large{.layers = 24, .heads = 16, .kv_heads = 4, .hidden_size = 1024, .ffn_size = 2816};

TEST(Grid, ModelsShrinkInLayersAndWidthTogether) {
  const auto models = smaller_models(large, 4, 2, 32, blocks);
  ASSERT_EQ(models.size(), 4u);
  EXPECT_EQ(models[0], large);
  for (size_t i = 1; i < models.size(); ++i) {
    const ModelScale &m = models[i], &before = models[i - 1];
    EXPECT_LT(blocks(m), blocks(before));
    EXPECT_EQ(m.heads, 4 * m.kv_heads);
    EXPECT_EQ(m.hidden_size, 64 * m.heads);
    EXPECT_EQ(m.ffn_size % 32, 0);
    const double shape = static_cast<double>(m.layers) / static_cast<double>(m.heads);
    EXPECT_NEAR(shape, 1.5, 0.6);
  }
  const double all = static_cast<double>(blocks(models[0])) / static_cast<double>(blocks(models[3]));
  EXPECT_NEAR(all, 8, 3);
}

TEST(Grid, WidthsStayMultiplesOfWhatBlocksNeed) {
  const ModelScale narrow{.layers = 8, .heads = 16, .kv_heads = 8, .hidden_size = 256, .ffn_size = 768};
  const auto count = [](const ModelScale& m) { return m.layers * m.hidden_size * m.ffn_size; };
  for (const int64_t unit : {32, 64, 128})
    for (const ModelScale& m : smaller_models(narrow, 3, 2, unit, count)) {
      EXPECT_EQ(m.hidden_size % unit, 0) << unit;
      EXPECT_EQ(m.kv_heads * 16 % unit, 0) << unit;
      EXPECT_EQ(m.ffn_size % unit, 0) << unit;
    }
}

TEST(Grid, AModelThatIsTooSmallHasNoSmallerOnes) {
  ModelScale tiny{.layers = 1, .heads = 2, .kv_heads = 2, .hidden_size = 128, .ffn_size = 256};
  EXPECT_NE(
      refusal([&] { smaller_models(tiny, 3, 2, 32, blocks); }).find("raise model.layers and model.heads"),
      std::string::npos);
  tiny.hidden_size = 129;
  EXPECT_NE(
      refusal([&] { smaller_models(tiny, 1, 2, 32, blocks); }).find("129 is no multiple of model.heads 2"),
      std::string::npos);
}

TEST(Grid, LengthsSpendTheBudget) {
  const std::vector<double> flops{6e6, 3e6};
  const auto lengths = lengths_for(1e15, flops, 3, 4, 1000, 2);
  ASSERT_EQ(lengths.size(), 3u);
  double spent = 0;
  for (const int64_t tokens : lengths) {
    EXPECT_EQ(tokens % 1000, 0);
    spent += 2 * 9e6 * static_cast<double>(tokens);
  }
  EXPECT_NEAR(spent, 1e15, 1e12);
  EXPECT_NEAR(static_cast<double>(lengths[2]) / static_cast<double>(lengths[1]), 4, 0.01);
}

TEST(Grid, ABudgetThatIsTooSmallIsRefusedWithOneThatIsNot) {
  const std::string said = refusal([] { lengths_for(1e9, {6e6}, 3, 4, 1000, 1); });
  EXPECT_NE(said.find("the shortest run would have 8 tokens, so raise --budget to about 1.3e+11"),
            std::string::npos)
      << said;
  EXPECT_NO_THROW(lengths_for(1.3e11, {6e6}, 3, 4, 1000, 1));
  EXPECT_NE(refusal([] { lengths_for(1e300, {6e6}, 3, 4, 1000, 1); }).find("lower --budget"),
            std::string::npos);
}

TEST(Grid, CountsAreShort) {
  EXPECT_EQ(short_count(999), "999");
  EXPECT_EQ(short_count(1000), "1k");
  EXPECT_EQ(short_count(62'464), "62.5k");
  EXPECT_EQ(short_count(999'960), "1M");
  EXPECT_EQ(short_count(1'500'000'000), "1.5G");
}

TEST(Grid, VariantsKeepCommasOfTheirValues) {
  EXPECT_EQ(parse_variant("bf16").name, "bf16");
  EXPECT_TRUE(parse_variant("bf16").overrides.empty());
  const Variant v = parse_variant("q4:a.b=[1, {c: 2, d: 3}],e='x,y',f=");
  EXPECT_EQ(v.name, "q4");
  EXPECT_EQ(v.overrides, (std::vector<std::string>{"a.b=[1, {c: 2, d: 3}]", "e='x,y'", "f="}));
}

TEST(Grid, VariantsThatAreNoneAreRefused) {
  EXPECT_NE(refusal([] { parse_variant(":a=1"); }).find("must begin with a name"), std::string::npos);
  EXPECT_NE(refusal([] { parse_variant("a/b:a=1"); }).find("must begin with a name"), std::string::npos);
  EXPECT_NE(refusal([] { parse_variant("a:"); }).find("'' must read key.path=value"), std::string::npos);
  EXPECT_NE(refusal([] { parse_variant("a:b=1,c"); }).find("'c' must read key.path=value"),
            std::string::npos);
}

}  // namespace
}  // namespace osprey
