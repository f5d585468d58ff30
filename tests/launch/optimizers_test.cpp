// Optimizers inside whole runs: Muon on the hidden matrices, AdamW on the rest, as recipes combine them.

#include <gtest/gtest.h>

#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

namespace {

// The last loss of 30 steps on one batch of two sequences, from about ln 96 = 4.56.
double learnt(const std::vector<std::string>& changes) {
  std::vector<std::string> overrides = {"train.steps=30", "train.precision=bf16",
                                        "train.global_batch_tokens=64"};
  overrides.insert(overrides.end(), changes.begin(), changes.end());
  return tiny_run(tiny_recipe(overrides), 1, 1, 1).losses.back();
}

}  // namespace

TEST(OptimizersInARun, EveryScaleRuleLearnsWithItsOwnLearningRate) {
  EXPECT_LT(learnt({}), 2.5);
  for (const char* rule : {"keller", "spectral"}) {
    const std::string scale = std::string("scale=") + rule;
    EXPECT_LT(learnt({"optim.1." + scale, "optim.1.learning_rate=0.02", "optim.2." + scale,
                      "optim.2.learning_rate=0.02"}),
              2.5)
        << rule;
  }
}

TEST(OptimizersInARun, KellerAndPlainMomentumLearnToo) {
  EXPECT_LT(learnt({"optim.1.newton_schulz=keller", "optim.2.newton_schulz=keller"}), 2.5);
  EXPECT_LT(learnt({"optim.1.nesterov=false", "optim.2.nesterov=false"}), 2.5);
}

TEST(OptimizersInARun, TheScheduleAndTheGroupsReachTheUpdate) {
  // With rates of nearly nothing in all groups nothing is learnt: no other rate is in use.
  EXPECT_GT(learnt({"optim.0.learning_rate=1e-9", "optim.1.learning_rate=1e-9", "optim.2.learning_rate=1e-9",
                    "optim.3.learning_rate=1e-9"}),
            4.4);
  // A warmup as long as the run learns less.
  EXPECT_GT(learnt({"schedule={kind: constant, warmup_steps: 30}"}), learnt({}));
}
