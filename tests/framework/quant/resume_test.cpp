// Runs whose quantization changes on the way go on after a stop as if there had been none.

#include <gtest/gtest.h>

#include <filesystem>

#include "framework/parallel/thread_comm.h"
#include "framework/scaling/record_hook.h"
#include "framework/train/checkpoint_hook.h"
#include "launch/checkpoints.h"
#include "tests/framework/scaling/example_record.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using test::TempDir;
using test::tiny_recipe;

struct Outcome {
  std::vector<double> losses;                   // of the steps that were done
  std::vector<std::vector<double>> parameters;  // after the last
  std::vector<LayerPatterns> patterns;          // after the last
  std::vector<int64_t> decisions;               // before which steps
};

struct Losses : StepHook {
  std::vector<double> all;
  void after_step(Trainer&, const StepResult& r) override { all.push_back(r.loss); }
};

/// What a rank of `osprey train` does up to the end of the recipe, on synthetic tokens; with a file for its
/// record it also evaluates.
Outcome train(const Recipe& recipe, Communicator& world, const std::filesystem::path& records = {}) {
  const DeviceKind kind = DeviceKind::cpu;
  Session session(recipe, world, Queue{},
                  SessionMemory::of(plan_memory(recipe, world.rank(), world.size(), 1, kind)));
  session.initialize();
  test::SyntheticSource source(recipe.model.vocab_size, world.rank(), world.size(), 1 << 20);
  TrainerParts parts = session.parts();
  parts.train = &source;
  if (!records.empty()) parts.validation = &source, parts.validation_sequences = 8;
  Trainer trainer(recipe.train, parts);
  const auto saver = make_checkpoint_hook(recipe, nullptr, trainer, session, {});
  const std::optional<int64_t> resumed = resume_run(*saver);
  Losses losses;
  std::vector<int64_t> decisions;
  session.schemes->on_decision = [&](int64_t step, std::span<const LayerPatterns>) {
    decisions.push_back(step);
  };
  trainer.add_hook(session.finetuning.get());
  RecordHook record(records, test::example_record("tiny"), world);
  if (!records.empty()) trainer.add_hook(&record);
  trainer.add_hook(session.schemes.get());
  trainer.add_hook(&losses);
  trainer.add_hook(saver.get());
  trainer.run(resumed.value_or(0));
  Outcome out{losses.all, {}, session.schemes->patterns(session.queue, world), decisions};
  for (const auto& p : session.params.all()) out.parameters.push_back(test::read(p->value));
  return out;
}

/// Trains to each of `stops` in turn, in processes of their own as it were: (ranks, steps).
Outcome train_in_stages(std::vector<std::string> overrides,
                        const std::vector<std::pair<int, int64_t>>& stages) {
  const TempDir folder;
  overrides.push_back("run.output_dir=" + folder.path().string());
  Outcome all;
  for (const auto& [ranks, steps] : stages) {
    auto now = overrides;
    now.push_back(fmt::format("train.steps={}", steps));
    const Recipe recipe = tiny_recipe(now, ranks);
    std::vector<Outcome> outcomes(static_cast<size_t>(ranks));
    run_thread_ranks(ranks, [&](Communicator& world) {
      outcomes[static_cast<size_t>(world.rank())] = train(recipe, world);
    });
    all.losses.insert(all.losses.end(), outcomes[0].losses.begin(), outcomes[0].losses.end());
    all.parameters = outcomes[0].parameters;
    all.patterns = outcomes[0].patterns;
    all.decisions.insert(all.decisions.end(), outcomes[0].decisions.begin(), outcomes[0].decisions.end());
    for (const Outcome& o : outcomes) {
      EXPECT_EQ(o.parameters, outcomes[0].parameters);
      EXPECT_EQ(o.patterns, outcomes[0].patterns);
      EXPECT_EQ(o.decisions, outcomes[0].decisions);
    }
  }
  return all;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.parameters, b.parameters);
  EXPECT_EQ(a.patterns, b.patterns);
  EXPECT_EQ(a.decisions, b.decisions);
}

TEST(QuantResume, InTheMiddleOfAnAnnealEveryBitIsTheSame) {
  // Layer 1 joins in step 1, layer 0 in step 4.
  const std::vector<std::string> quant = {
      "quant=[{preset: quartet, first_step: 1, anneal_steps: 6, anneal_order: last_layers}]"};
  const Outcome straight = train_in_stages(quant, {{1, 6}});
  expect_same(straight, train_in_stages(quant, {{1, 2}, {1, 3}, {1, 6}}));
  expect_same(train_in_stages(quant, {{2, 6}}), train_in_stages(quant, {{2, 3}, {2, 6}}));

  const Outcome at_once = train_in_stages({"quant=[{preset: quartet, first_step: 1}]"}, {{1, 6}});
  EXPECT_EQ(straight.losses[0], at_once.losses[0]);
  EXPECT_NE(straight.losses[1], at_once.losses[1]) << "nothing was annealed; the test tests nothing";
}

TEST(QuantResume, ARecordMadeAfterwardsHasTheLossOfTheLastEvaluation) {
  for (const char* quant :
       {"quant=[{preset: qat_mxfp4_w4a4, first_step: 3}]", "quant=[{preset: adahop, calibration_steps: 2}]",
        "quant=[{preset: mxint8, end_step: 3}]", "quant=[{preset: lsq, first_step: 3}]"}) {
    const TempDir folder;
    const auto records = folder / "scaling.jsonl";
    const auto loss = [&](const char* change) {
      std::filesystem::remove(records);
      const Recipe recipe = tiny_recipe({"run.output_dir=" + folder.path().string(), quant, change});
      run_thread_ranks(1, [&](Communicator& world) { train(recipe, world, records); });
      return *read_records(records).at(0).validation_loss;
    };
    const char* all = "train.steps=6";
    const double trained = loss(all);
    EXPECT_EQ(loss(all), trained) << quant;
  }
}

TEST(QuantResume, TokensMeanTheStepThatBeginsThere) {
  // Steps of 256 tokens: 300 tokens are over where step 2 begins, 1024 where step 4 does.
  const Outcome tokens =
      train_in_stages({"quant=[{preset: quartet, first_tokens: 300, end_tokens: 1024}]"}, {{1, 3}, {1, 6}});
  const Outcome steps = train_in_stages({"quant=[{preset: quartet, first_step: 2, end_step: 4}]"}, {{1, 6}});
  expect_same(tokens, steps);
}

/// With outliers: the ratio is low enough that some products are rotated and others are not.
const std::vector<std::string> adahop = {
    "quant=[{preset: adahop, first_step: 1, calibration_steps: 3, outlier_ratio: 1.8}]"};

TEST(QuantResume, BeforeAndAfterADecisionEveryBitIsTheSame) {
  const Outcome straight = train_in_stages(adahop, {{1, 7}});
  EXPECT_EQ(straight.decisions, (std::vector<int64_t>{4}));
  // In the calibration, when it is over and nothing is decided yet, and afterwards.
  expect_same(straight, train_in_stages(adahop, {{1, 2}, {1, 4}, {1, 5}, {1, 7}}));
  expect_same(train_in_stages(adahop, {{2, 7}}), train_in_stages(adahop, {{2, 3}, {2, 6}, {2, 7}}));

  ASSERT_EQ(straight.patterns.size(), 8u) << "two layers of q k v, o, gate up, down";
  int rotated = 0;
  for (const LayerPatterns& p : straight.patterns) {
    EXPECT_EQ(p.votes(), 3 * 4) << "steps times micro batches";
    EXPECT_TRUE(p.decided);
    EXPECT_EQ(p.rotated, p.wanted());
    rotated += p.rotated.forward + p.rotated.dw + p.rotated.dx;
  }
  EXPECT_GT(rotated, 0);
  EXPECT_LT(rotated, 24);
}

TEST(QuantResume, RanksDecideTogetherByAllTheirVotes) {
  const Outcome one = train_in_stages(adahop, {{1, 7}}), two = train_in_stages(adahop, {{2, 3}, {1, 7}});
  ASSERT_EQ(two.patterns.size(), one.patterns.size());
  for (size_t i = 0; i < one.patterns.size(); ++i)
    EXPECT_EQ(two.patterns[i].votes(), one.patterns[i].votes()) << one.patterns[i].weight;
}

TEST(QuantResume, CalibrationComputesThePlainModel) {
  const Outcome plain = train_in_stages({}, {{1, 6}}), measured = train_in_stages(adahop, {{1, 6}});
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(measured.losses[i], plain.losses[i]) << i;
  EXPECT_NE(measured.losses[4], plain.losses[4]);
}

TEST(QuantResume, WhatIsRecomputedVotesOnce) {
  std::vector<std::string> again = adahop;
  again.push_back("train.recompute=block");
  expect_same(train_in_stages(adahop, {{1, 6}}), train_in_stages(again, {{1, 6}}));
}

std::vector<std::string> with_outlier_rows(const std::vector<std::string>& more = {}) {
  std::vector<std::string> recipe = {
      "quant=[{preset: adahop, first_step: 1, calibration_steps: 3, outlier_ratio: 1.4, outlier_rows: 5}]"};
  recipe.insert(recipe.end(), more.begin(), more.end());
  return recipe;
}

TEST(QuantResume, OutlierRowsAreTakenByTheSameLayersAfterAStop) {
  const Outcome straight = train_in_stages(with_outlier_rows(), {{1, 7}});
  int forward = 0, dx = 0;
  for (const LayerPatterns& p : straight.patterns) forward += p.extracted().forward, dx += p.extracted().dx;
  EXPECT_GT(forward, 0);
  EXPECT_GT(dx, 0);
  EXPECT_LT(forward + dx, 16);
  expect_same(straight, train_in_stages(with_outlier_rows(), {{1, 2}, {1, 4}, {1, 5}, {1, 7}}));

  const Outcome without = train_in_stages(
      {"quant=[{preset: adahop, first_step: 1, calibration_steps: 3, outlier_ratio: 1.4}]"}, {{1, 7}});
  EXPECT_EQ(straight.patterns, without.patterns);
  EXPECT_EQ(straight.losses[3], without.losses[3]);
  EXPECT_NE(straight.losses[4], without.losses[4]) << "no row was taken; the test tests nothing";
}

TEST(QuantResume, OutlierRowsAreThoseOfMicroBatchesOnAnyNumberOfRanks) {
  const Outcome one = train_in_stages(with_outlier_rows(), {{1, 7}}),
                two = train_in_stages(with_outlier_rows(), {{2, 7}});
  expect_same(two, train_in_stages(with_outlier_rows(), {{2, 3}, {2, 6}, {2, 7}}));
  for (size_t i = 0; i < one.losses.size(); ++i) EXPECT_NEAR(two.losses[i], one.losses[i], 2e-3) << i;
}

TEST(QuantResume, OutlierRowsOfWhatIsRecomputedAreTheSame) {
  const Outcome kept = train_in_stages(with_outlier_rows(), {{1, 6}});
  for (const char* recompute : {"train.recompute=block", "train.recompute=attention"})
    expect_same(kept, train_in_stages(with_outlier_rows({recompute}), {{1, 6}}));
}

/// Layer 0 learns steps from step 1 on, layer 1 from step 3 on.
const std::vector<std::string> lsq = {"quant=[{preset: lsq, first_step: 1, anneal_steps: 4}]"};

TEST(QuantResume, LearntStepsGoOnWhereTheyWereOnAnyNumberOfRanks) {
  for (const char* zero : {"parallel.zero=0", "parallel.zero=1"}) {
    std::vector<std::string> recipe = lsq;
    recipe.push_back(zero);
    const Outcome straight = train_in_stages(recipe, {{1, 6}});
    // Before they begin, in the very step, and afterwards.
    expect_same(straight, train_in_stages(recipe, {{1, 1}, {1, 2}, {1, 3}, {1, 6}}));
    const Outcome two = train_in_stages(recipe, {{2, 6}});
    expect_same(two, train_in_stages(recipe, {{2, 3}, {2, 4}, {2, 6}}));
    const Outcome four = train_in_stages(recipe, {{4, 3}, {1, 4}, {4, 6}});
    for (size_t i = 0; i < straight.losses.size(); ++i) {
      EXPECT_NEAR(two.losses[i], straight.losses[i], 2e-3) << i;
      EXPECT_NEAR(four.losses[i], straight.losses[i], 2e-3) << i;
    }
  }
}

TEST(QuantResume, FrozenWeightsStandStillOnBothSidesOfAStop) {
  const std::vector<std::string> freeze = {
      "quant=[{weights: {format: int4_row, scale: stats}, freeze: {first_step: 2, anneal_steps: 3, boundary: 0.05}}]"};
  const Outcome straight = train_in_stages(freeze, {{1, 7}});
  expect_same(straight, train_in_stages(freeze, {{1, 2}, {1, 4}, {1, 7}}));
  expect_same(train_in_stages(freeze, {{2, 7}}), train_in_stages(freeze, {{2, 3}, {2, 6}, {2, 7}}));
  const Outcome moving = train_in_stages({"quant=[{weights: {format: int4_row, scale: stats}}]"}, {{1, 7}});
  EXPECT_EQ(moving.losses[2], straight.losses[2]);
  EXPECT_NE(moving.losses[4], straight.losses[4]) << "nothing was frozen; the test tests nothing";
}

TEST(QuantResume, ARunThatDidNotCalibrateCannotGoOnAsIfItHad) {
  const TempDir folder;
  const std::string place = "run.output_dir=" + folder.path().string();
  run_thread_ranks(1, [&](Communicator& world) { train(tiny_recipe({place, "train.steps=3"}), world); });
  const std::string words = test::refusal([&] {
    run_thread_ranks(1, [&](Communicator& world) {
      train(tiny_recipe({place, "train.steps=6", adahop[0]}), world);
    });
  });
  EXPECT_NE(words.find("holds no such measurement; begin the group at step 3 or later"), std::string::npos)
      << words;
}

}  // namespace
}  // namespace osprey
