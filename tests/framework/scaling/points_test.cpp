#include "framework/scaling/points.h"

#include <gtest/gtest.h>

#include "tests/framework/scaling/example_record.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using namespace test;
using Kind = Law::Kind;

std::string refused(Kind kind, const std::vector<RunRecord>& records, const PointOptions& options = {}) {
  return refusal([&] { points_of(kind, records, options); });
}

bool says(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

TEST(Points, OfChinchillaAreTheRunsWithoutQuantization) {
  const RunRecord a = example_record("a"), b = example_record("b", 2'000'000, 40'000'000);
  LawData data = points_of(Kind::chinchilla, {a, quantized(a, "q", 0.1), b}, {});
  ASSERT_EQ(data.points.size(), 2u);
  EXPECT_EQ(data.points[1].run, "b");
  EXPECT_EQ(data.points[1].parameters, 2e6);
  EXPECT_EQ(data.points[1].tokens, 4e7);
  EXPECT_EQ(data.points[1].target, 3.1);
  EXPECT_EQ(data.left_out, std::vector<std::string>{"1 run with quantization"});
  data =
      points_of(Kind::chinchilla, {a}, {.size = PointOptions::Size::all, .loss = PointOptions::Loss::train});
  EXPECT_EQ(data.points[0].parameters, 1.5e6);
  EXPECT_EQ(data.points[0].target, 3.05);
}

TEST(Points, ARunWithoutItsLossIsLeftOutAndNamed) {
  RunRecord diverged = example_record("b");
  diverged.validation_loss = {};
  const LawData data = points_of(Kind::chinchilla, {example_record("a"), diverged}, {});
  EXPECT_EQ(data.points.size(), 1u);
  EXPECT_EQ(data.left_out, std::vector<std::string>{"b has no validation loss that is finite"});
  EXPECT_TRUE(says(refused(Kind::chinchilla, {diverged}), "no run has a loss to fit"));
  EXPECT_TRUE(says(refused(Kind::chinchilla, {}), "no run has a loss to fit; the 0 records"));
}

TEST(Points, OfQatAreDifferencesOfPairs) {
  RunRecord bf16 = example_record("a"), seed = example_record("b"), q = quantized(bf16, "q", 0.1);
  seed.seed = 43;
  *seed.validation_loss += 0.01;
  RunRecord q2 = quantized(bf16, "q2", 0.12);
  q2.seed = 43;
  const RunRecord coarse = quantized(bf16, "coarse", 0.2, 128);
  RunRecord alone = quantized(example_record("x", 3'000'000), "alone", 0.1);
  const LawData data = points_of(Kind::qat, {bf16, seed, q, q2, coarse, alone}, {});
  ASSERT_EQ(data.points.size(), 2u);
  EXPECT_NEAR(data.points[0].target, 0.11 - 0.005, 1e-12);
  EXPECT_NEAR(data.points[0].reference, 3.105, 1e-12);
  EXPECT_EQ(data.points[0].block, 32);
  EXPECT_EQ(data.points[1].block, 128);
  EXPECT_EQ(data.left_out, std::vector<std::string>{"1 run with quantization and no partner without it"});
}

TEST(Points, WithoutAPairThereIsNoDifference) {
  const RunRecord a = example_record("a");
  EXPECT_TRUE(says(refused(Kind::qat, {a}), "all 1 runs are of bf16 or f32"));
  for (int what = 0; what < 4; ++what) {
    RunRecord q = quantized(a, "q", 0.1);
    if (what == 0) q.tokens *= 2;
    if (what == 1) q.batch_tokens *= 2;
    if (what == 2) q.schedule = "cosine";
    if (what == 3) q.parameters += 1;
    EXPECT_TRUE(says(refused(Kind::qat, {a, q}), "no quantized run has a partner")) << what;
  }
}

TEST(Points, ADifferenceThatIsNotAboveZeroIsRefused) {
  const RunRecord a = example_record("a");
  EXPECT_TRUE(says(refused(Kind::qat, {a, quantized(a, "q", -0.0006)}),
                   "q loses 0.00060 nats less than its partner a without quantization"));
}

TEST(Points, ABlockIsNeededAndMustBeAboveOne) {
  const RunRecord a = example_record("a");
  RunRecord q = quantized(a, "q", 0.1);
  q.formats.block = {};
  EXPECT_TRUE(says(refused(Kind::qat, {a, q}), "its record says no block"));
  EXPECT_EQ(points_of(Kind::qat, {a, q}, {.block_matters = false}).points.size(), 1u);
  EXPECT_TRUE(says(refused(Kind::qat, {a, quantized(a, "q", 0.1, 1)}), "q has G = 1"));
}

TEST(Points, WhatCannotBeComparedIsRefused) {
  const RunRecord a = example_record("a");
  RunRecord other = example_record("b"), adam = example_record("c");
  other.tokenizer = "sentencepiece-8192";
  adam.optimizers = {"adamw"};
  EXPECT_TRUE(says(refused(Kind::chinchilla, {a, other}), "2 tokenizers (bytes, sentencepiece-8192)"));
  EXPECT_TRUE(says(refused(Kind::chinchilla, {a, adam}), "2 optimizers (muon+adamw, adamw)"));
  EXPECT_EQ(points_of(Kind::chinchilla, {a, adam}, {.optimizer = "adamw"}).points[0].run, "c");
  EXPECT_TRUE(
      says(refused(Kind::chinchilla, {a}, {.optimizer = "sgd"}), "no run with optimizer sgd has a loss"));
  const RunRecord q = quantized(a, "q", 0.1), w = quantized(a, "w", 0.1, 32, "bf16");
  EXPECT_TRUE(
      says(refused(Kind::qat, {a, q, w}), "2 schemes of quantization (mxfp4/mxfp4/bf16, bf16/mxfp4/bf16)"));
  EXPECT_EQ(points_of(Kind::qat, {a, q, w}, {.scheme = "bf16/mxfp4/bf16"}).points[0].run, "w");
  RunRecord late = quantized(a, "late", 0.05);
  late.formats.how = "from step 100";
  EXPECT_TRUE(says(refused(Kind::qat, {a, q, late}), "(mxfp4/mxfp4/bf16, mxfp4/mxfp4/bf16 (from step 100))"));
  EXPECT_EQ(points_of(Kind::qat, {a, late}, {.scheme = "mxfp4/mxfp4/bf16"}).points[0].run, "late");
  RunRecord later = quantized(a, "later", 0.04);
  later.formats.how = "from step 200";
  EXPECT_TRUE(says(refused(Kind::qat, {a, late, later}, {.scheme = "mxfp4/mxfp4/bf16"}),
                   "2 schemes have the formats mxfp4/mxfp4/bf16; give one in full: mxfp4/mxfp4/bf16 (from "
                   "step 100); mxfp4/mxfp4/bf16 (from step 200)"));
  EXPECT_EQ(
      points_of(Kind::qat, {a, late, later}, {.scheme = "mxfp4/mxfp4/bf16 (from step 200)"}).points[0].run,
      "later");
  EXPECT_TRUE(
      says(refused(Kind::qat, {a, q, w}, {.scheme = "int4_row/bf16/bf16"}),
           "no run is of the scheme int4_row/bf16/bf16; there are: mxfp4/mxfp4/bf16; bf16/mxfp4/bf16"));
  EXPECT_TRUE(
      says(refused(Kind::qat, {a}, {.scheme = "mxfp4/mxfp4/bf16"}), "there is none with quantization"));
  EXPECT_TRUE(says(refused(Kind::chinchilla, {q}), "all 1 runs are quantized"));
}

TEST(Points, OfQuartetAreGroupedByScheme) {
  const RunRecord a = example_record("a");
  const LawData data = points_of(
      Kind::quartet, {quantized(a, "q", 0.1), a, quantized(a, "c", 0.2, 128), quantized(a, "r", 0.1)}, {});
  EXPECT_EQ(data.law.groups(), (std::vector<std::string>{"without quantization", "mxfp4/mxfp4/bf16 block 32",
                                                         "mxfp4/mxfp4/bf16 block 128"}));
  ASSERT_EQ(data.points.size(), 4u);
  EXPECT_EQ(data.points[0].run, "a");
  EXPECT_EQ(data.points[0].group, 0u);
  EXPECT_EQ(data.points[1].group, 1u);
  EXPECT_EQ(data.points[2].group, 2u);
  EXPECT_EQ(data.points[3].group, 1u);
  EXPECT_TRUE(says(refused(Kind::quartet, {a}), "the law quartet compares them with quantized ones"));
}

TEST(Points, OfOptimizersAreGroupedAndTheReferenceIsChosen) {
  RunRecord muon = example_record("m"), adam = example_record("a");
  adam.optimizers = {"adamw"};
  LawData data = points_of(Kind::per_optimizer, {muon, adam}, {});
  EXPECT_EQ(data.law.groups(), (std::vector<std::string>{"muon+adamw", "adamw"}));
  EXPECT_EQ(data.points[1].group, 1u);
  data = points_of(Kind::per_optimizer, {muon, adam}, {.reference = "adamw"});
  EXPECT_EQ(data.law.groups(), (std::vector<std::string>{"adamw", "muon+adamw"}));
  EXPECT_EQ(data.points[1].group, 0u);
  EXPECT_TRUE(says(refused(Kind::per_optimizer, {muon}), "all runs have the optimizer muon+adamw"));
  EXPECT_TRUE(
      says(refused(Kind::per_optimizer, {muon, adam}, {.reference = "sgd"}), "no run has the optimizer sgd"));
}

}  // namespace
}  // namespace osprey
