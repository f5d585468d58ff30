// Laws that hold for the whole machine, whatever its parts: on a 2-layer model.

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/test_bed.h"
#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

TEST(Laws, TheFirstLossIsTheEntropyOfTheVocabulary) {
  for (const char* precision : {"fp32", "bf16"}) {
    const TinyResult r =
        tiny_run(tiny_recipe({"train.steps=1", fmt::format("train.precision={}", precision)}));
    EXPECT_NEAR(r.losses[0], std::log(96.0), 0.1) << precision;
  }
}

TEST(Laws, OneBatchIsLearntByHeart) {
  const TinyResult r = tiny_run(tiny_recipe({"train.steps=120", "train.precision=bf16"}), 1, 1, 1);
  EXPECT_LT(r.losses.back(), 0.3) << "from " << r.losses.front();
}

TEST(Laws, RanksDoNotChangeTheLosses) {
  const std::vector<double> one = tiny_run(tiny_recipe()).losses;
  for (const char* zero : {"0", "1"}) {
    for (int ranks : {2, 4}) {
      const Recipe recipe = tiny_recipe({fmt::format("parallel.zero={}", zero),
                                         fmt::format("train.micro_batch_size={}", ranks == 4 ? 1 : 2)},
                                        ranks);
      EXPECT_LT(largest_difference(tiny_run(recipe, ranks).losses, one), 2e-5)
          << ranks << " ranks, zero " << zero;
    }
  }
}

TEST(Laws, RanksHoldTheSameParametersBitForBit) {
  for (const char* zero : {"0", "1"}) {
    const Recipe recipe = tiny_recipe({fmt::format("parallel.zero={}", zero), "train.precision=bf16"}, 2);
    std::vector<std::vector<double>> first(2);
    tiny_run(recipe, 2, 1, 1 << 20, [&](Session& s, int64_t step) {
      if (step != 6) return;
      auto& mine = first[static_cast<size_t>(s.world.rank())];
      for (const auto& p : s.params.all())
        for (double v : read(p->value)) mine.push_back(v);
    });
    EXPECT_EQ(first[0], first[1]) << "zero " << zero;
  }
}

TEST(Laws, GradientAccumulationDoesNotChangeTheLosses) {
  const std::vector<double> micro2 = tiny_run(tiny_recipe()).losses;
  EXPECT_LT(largest_difference(tiny_run(tiny_recipe({"train.micro_batch_size=8"})).losses, micro2), 2e-5);
}

TEST(Laws, RecomputeDoesNotChangeABit) {
  for (const char* precision : {"fp32", "bf16"}) {
    const std::string p = fmt::format("train.precision={}", precision);
    const TinyResult plain = tiny_run(tiny_recipe({p}));
    for (const char* recompute : {"attention", "block"}) {
      const TinyResult replayed = tiny_run(tiny_recipe({p, fmt::format("train.recompute={}", recompute)}));
      EXPECT_TRUE(plain.losses == replayed.losses) << recompute << " in " << precision;
      EXPECT_TRUE(plain.parameters == replayed.parameters) << recompute << " in " << precision;
    }
  }
}

TEST(Laws, ThreadsDoNotChangeABit) {
  const TinyResult one = tiny_run(tiny_recipe({"train.precision=bf16"}), 1, 1),
                   three = tiny_run(tiny_recipe({"train.precision=bf16"}), 1, 3);
  EXPECT_EQ(one.losses, three.losses);
  EXPECT_EQ(one.parameters, three.parameters);
}

TEST(Laws, QuantizedRunsAreTheSameOnAnyNumberOfThreadsAndWithRecompute) {
  for (const char* preset : {"quartet", "qat_mxfp4_w4a4", "nvfp4"}) {
    const std::string quant = fmt::format("quant=[{{preset: {}}}]", preset);
    const auto run = [&](const char* change, int threads) {
      return tiny_run(tiny_recipe({quant, "train.precision=bf16", change}), 1, threads);
    };
    const TinyResult one = run("train.recompute=none", 1);
    for (const auto& [change, threads] :
         {std::pair{"train.recompute=none", 3}, {"train.recompute=block", 2}}) {
      const TinyResult other = run(change, threads);
      EXPECT_EQ(one.losses, other.losses) << preset << " " << change;
      EXPECT_EQ(one.parameters, other.parameters) << preset << " " << change;
    }
    EXPECT_NE(one.losses, tiny_run(tiny_recipe({"train.precision=bf16"})).losses) << preset;
  }
}

TEST(Laws, RanksDrawWhatOneRankDraws) {
  // Gradients agree until their sums, which ranks add in another order, move a value over a rounding
  // boundary.
  const char* const quant = "quant=[{preset: quartet}]";
  const TinyResult one = tiny_run(tiny_recipe({quant}));
  for (int ranks : {2, 4}) {
    const TinyResult other = tiny_run(tiny_recipe({quant}, ranks), ranks);
    EXPECT_LT(std::abs(other.grad_norms[0] / one.grad_norms[0] - 1), 1e-5) << ranks;
    EXPECT_LT(largest_difference(other.losses, one.losses), 2e-2) << ranks;
  }
}

TEST(Laws, QuantizationBeginsAndEndsWithItsSteps) {
  const std::vector<double> plain = tiny_run(tiny_recipe()).losses;
  const std::vector<double> late = tiny_run(tiny_recipe({"quant=[{preset: quartet, first_step: 3}]"})).losses;
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(plain[i], late[i]) << i;
  EXPECT_NE(plain[3], late[3]);
  const std::vector<double> early = tiny_run(tiny_recipe({"quant=[{preset: quartet, end_step: 1}]"})).losses;
  EXPECT_NE(plain[0], early[0]);
  EXPECT_LT(largest_difference(plain, early), 0.3);
}

TEST(Laws, EveryPartOfTheModelTrains) {
  for (const char* change :
       {"model.norm=rmsnorm", "model.norm=layernorm", "model.qk_norm=true", "model.attention.kind=gated",
        "model.attention.kind=sink", "model.kv_heads=4", "model.kv_heads=1"}) {
    const TinyResult r = tiny_run(tiny_recipe({change, "train.steps=40"}), 1, 1, 1);
    EXPECT_LT(r.losses.back(), r.losses.front() - 1) << change;
  }
  const TinyResult clipped =
      tiny_run(tiny_recipe({"model.attention={kind: clipped_softmax, alpha: 2}", "train.steps=40"}), 1, 1, 1);
  EXPECT_LT(clipped.losses.back(), clipped.losses.front() - 1);
}

TEST(Laws, AMemoryPlanIsWhatARunUses) {
  const Recipe recipe = tiny_recipe({"train.precision=bf16"});
  const TinyResult run = tiny_run(recipe);
  const std::vector<MemoryCategory> planned = plan_memory(recipe, 0, 1, 1, test_device().kind);
  ASSERT_EQ(planned.size(), run.memory.size());
  for (size_t i = 0; i < planned.size(); ++i) {
    EXPECT_EQ(planned[i].name, run.memory[i].name);
    EXPECT_NEAR(static_cast<double>(planned[i].bytes), static_cast<double>(run.memory[i].bytes),
                0.1 * static_cast<double>(run.memory[i].bytes) + 64)
        << planned[i].name;
  }
}

TEST(Laws, ANonFiniteGradientSkipsTheUpdateAndTooManyEndTheRun) {
  const Recipe recipe = tiny_recipe({"train.max_skipped_updates=2", "train.steps=12"});
  int64_t seen = 0;
  try {
    tiny_run(recipe, 2, 1, 1 << 20, [&](Session& s, int64_t step) {
      if (step == 3) s.params.at("layers.0.mlp.up.weight").value.as<float>()[0] = NAN;
      if (s.world.rank() == 0) seen = step;
    });
    FAIL() << "trained on with NaN";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("not finite 3 times in a row"), std::string::npos) << e.what();
  }
  EXPECT_EQ(seen, 5) << "steps 4 and 5 were skipped, step 6 ended the run";
}
