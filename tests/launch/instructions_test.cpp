// Instruction data through the whole machine: what packing, ranks and micro steps must not change.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "framework/parallel/thread_comm.h"
#include "launch/data_source.h"
#include "launch/session.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

namespace {

class Instructions : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream file(path_);
    for (int i = 0; i < 60; ++i)
      file << fmt::format("{{\"prompt\": \"{} + {} =\", \"completion\": \"{}{}\"}}\n", i, i, 2 * i,
                          std::string(static_cast<size_t>(i % 11), '!'));
  }

  Recipe recipe(const std::vector<std::string>& changes = {}, int64_t ranks = 1) {
    std::vector<std::string> all = {fmt::format("data.train=[{{path: '{}'}}]", path_),
                                    fmt::format("data.validation=[{{path: '{}'}}]", path_),
                                    "data.template=none",
                                    "data.sequence_len=48",
                                    "train.global_batch_tokens=384",
                                    "model.vocab_size=264",
                                    "train.steps=4"};
    all.insert(all.end(), changes.begin(), changes.end());
    return tiny_recipe(all, ranks);
  }

  struct Result {
    std::vector<double> losses;
    double evaluated_nats = 0;
    int64_t evaluated_tokens = 0;
  };
  struct Collect : StepHook {
    explicit Collect(std::vector<double>& l) : losses(l) {}
    void after_step(Trainer&, const StepResult& r) override { losses.push_back(r.loss); }
    std::vector<double>& losses;
  };
  static Result run_rank(Recipe recipe, Communicator& world) {
    RunData data = open_data(recipe, 1);
    const kernels::OpenQueue open = kernels::open_queue({DeviceKind::cpu, 0}, 1);
    Session session(recipe, world, open.queue,
                    SessionMemory::of(plan_memory(recipe, world.rank(), world.size(), 1, DeviceKind::cpu)));
    session.initialize();
    TrainSource train(*data.train, world);
    ValidationSource validation(*data.validation, world);
    TrainerParts parts = session.parts();
    parts.train = &train;
    parts.validation = &validation;
    parts.validation_sequences = data.validation->rows();
    Trainer trainer(recipe.train, parts);
    Result result;
    Collect collect(result.losses);
    const EvalResult before = trainer.evaluate(0);
    result.evaluated_nats = before.loss * static_cast<double>(before.counted_tokens);
    result.evaluated_tokens = before.counted_tokens;
    trainer.add_hook(session.schemes.get());
    trainer.add_hook(&collect);
    trainer.run(0);
    return result;
  }
  static Result run(const Recipe& recipe, int ranks = 1) {
    std::vector<Result> results(static_cast<size_t>(ranks));
    run_thread_ranks(ranks, [&](Communicator& world) {
      results[static_cast<size_t>(world.rank())] = run_rank(recipe, world);
    });
    return results[0];
  }

  TempDir dir_;
  std::string path_ = (dir_ / "rows.jsonl").string();
};

TEST_F(Instructions, PackedRowsLoseWhatTheyLoseAlone) {
  const Result packed = run(recipe({"train.steps=1"})),
               alone = run(recipe({"train.steps=1", "data.packing=false"}));
  EXPECT_GT(packed.evaluated_tokens, 60);
  EXPECT_EQ(packed.evaluated_tokens, alone.evaluated_tokens);
  EXPECT_NEAR(packed.evaluated_nats / alone.evaluated_nats, 1, 1e-5);
}

TEST_F(Instructions, MicroStepsWithUnequalCountsAddUpToOneStep) {
  const std::vector<double> two = run(recipe()).losses;
  for (const char* rows : {"1", "8"})
    EXPECT_LT(largest_difference(run(recipe({fmt::format("train.micro_batch_size={}", rows)})).losses, two),
              2e-5);
}

TEST_F(Instructions, RanksDoNotChangeTheLosses) {
  const Result one = run(recipe());
  for (const int ranks : {2, 4}) {
    const Result other = run(recipe({"train.micro_batch_size=1"}, ranks), ranks);
    EXPECT_LT(largest_difference(other.losses, one.losses), 2e-5) << ranks;
    EXPECT_NEAR(other.evaluated_nats, one.evaluated_nats, 1e-3) << ranks;
  }
}

TEST_F(Instructions, EpochsBecomeSteps) {
  Recipe r = recipe({"train.steps=null", "train.epochs=3", "data.packing=false"});
  EXPECT_THROW(r.train.total_steps(), Error);
  open_data(r, 1);
  EXPECT_EQ(r.train.total_steps(), (3 * 60 + 7) / 8);
  EXPECT_EQ(run(r).losses.size(), 23u);
}

}  // namespace
