// Runs whose quantization changes on the way go on after a stop as if there had been none.

#include <gtest/gtest.h>

#include "framework/parallel/thread_comm.h"
#include "framework/train/checkpoint_hook.h"
#include "launch/checkpoints.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using test::TempDir;
using test::tiny_recipe;

struct Outcome {
  std::vector<double> losses;                   // of the steps that were done
  std::vector<std::vector<double>> parameters;  // after the last
};

struct Losses : StepHook {
  std::vector<double> all;
  void after_step(Trainer&, const StepResult& r) override { all.push_back(r.loss); }
};

/// What a rank of `osprey train` does up to the end of the recipe, on synthetic tokens.
Outcome train(const Recipe& recipe, Communicator& world) {
  const DeviceKind kind = DeviceKind::cpu;
  Session session(recipe, world, Queue{},
                  SessionMemory::of(plan_memory(recipe, world.rank(), world.size(), 1, kind)));
  session.initialize();
  test::SyntheticSource source(recipe.model.vocab_size, world.rank(), world.size(), 1 << 20);
  TrainerParts parts = session.parts();
  parts.train = &source;
  Trainer trainer(recipe.train, parts);
  const auto saver = make_checkpoint_hook(recipe, nullptr, trainer, {});
  const std::optional<int64_t> resumed = resume_run(*saver);
  Losses losses;
  trainer.add_hook(session.schemes.get());
  trainer.add_hook(&losses);
  trainer.add_hook(saver.get());
  trainer.run(resumed.value_or(0));
  Outcome out{losses.all, {}};
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
    for (const Outcome& o : outcomes) EXPECT_EQ(o.parameters, outcomes[0].parameters);
  }
  return all;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.parameters, b.parameters);
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

TEST(QuantResume, TokensMeanTheStepThatBeginsThere) {
  // Steps of 256 tokens: 300 tokens are over where step 2 begins, 1024 where step 4 does.
  const Outcome tokens =
      train_in_stages({"quant=[{preset: quartet, first_tokens: 300, end_tokens: 1024}]"}, {{1, 3}, {1, 6}});
  const Outcome steps = train_in_stages({"quant=[{preset: quartet, first_step: 2, end_step: 4}]"}, {{1, 6}});
  expect_same(tokens, steps);
}

}  // namespace
}  // namespace osprey
