#include "framework/eval/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/core/check.h"

using namespace osprey;

namespace {

std::map<int32_t, double> frequencies(const SamplerSpec& spec, const std::vector<float>& logits,
                                      int draws = 20000) {
  Sampler sampler(spec);
  std::map<int32_t, double> f;
  for (int i = 0; i < draws; ++i) f[sampler.sample(logits, 1, static_cast<uint64_t>(i))] += 1.0 / draws;
  return f;
}

const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(4.0f), std::log(1.0f)};  // 1 : 2 : 4 : 1

}  // namespace

TEST(Sampler, DrawsInProportion) {
  auto f = frequencies({}, logits);
  EXPECT_NEAR(f[0], 0.125, 0.01);
  EXPECT_NEAR(f[1], 0.25, 0.012);
  EXPECT_NEAR(f[2], 0.5, 0.014);
  EXPECT_NEAR(f[3], 0.125, 0.01);
}

TEST(Sampler, TemperatureSharpens) {
  auto f = frequencies({.temperature = 0.5, .top_k = {}, .top_p = {}}, logits);  // 1 : 4 : 16 : 1
  EXPECT_NEAR(f[2], 16.0 / 22, 0.012);
}

TEST(Sampler, AtTemperatureZeroTakesTheMostLikelyAndTheSmallerOfTwoEqual) {
  Sampler s({.temperature = 0, .top_k = {}, .top_p = {}});
  EXPECT_EQ(s.sample(logits, 1, 1), 2);
  EXPECT_EQ(s.sample(std::vector<float>{1, 3, 3}, 1, 1), 1);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  for (const SamplerSpec& spec : {SamplerSpec{.temperature = 1, .top_k = 2, .top_p = {}},
                                  SamplerSpec{.temperature = 1, .top_k = {}, .top_p = 0.7}}) {
    auto f = frequencies(spec, logits);
    EXPECT_EQ(f.size(), 2u);
    EXPECT_NEAR(f[2], 2.0 / 3, 0.014);
  }
  EXPECT_EQ(frequencies({.temperature = 1, .top_k = {}, .top_p = 0.01}, logits).size(), 1u);
}

TEST(Sampler, IsAFunctionOfSeedStreamAndIndex) {
  Sampler a({.seed = 1}), b({.seed = 1}), c({.seed = 2});
  int same = 0, other = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const int32_t x = a.sample(logits, 3, i);
    same += x == b.sample(logits, 3, i);
    other += x == c.sample(logits, 3, i);
  }
  EXPECT_EQ(same, 200);
  EXPECT_LT(other, 120);
}

TEST(Sampler, RefusesWhatMakesNoSense) {
  EXPECT_THROW(Sampler({.temperature = -1}), Error);
  EXPECT_THROW(Sampler({.top_k = 0}), Error);
  EXPECT_THROW(Sampler({.top_p = 1.5}), Error);
  EXPECT_THROW(Sampler({}).sample(std::vector<float>{1, NAN}, 0, 0), Error);
}
