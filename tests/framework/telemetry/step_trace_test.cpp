#include "framework/telemetry/step_trace.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using nlohmann::json;

TEST(StepTrace, WritesTheOpsOfTheStepsItWatches) {
  const test::TempDir dir;
  const Recipe recipe = test::tiny_recipe({"train.steps=5"});
  const auto world = make_self_comm();
  const kernels::OpenQueue open = kernels::open_queue(test::test_device(), 1);
  Session session(recipe, *world, open.queue,
                  SessionMemory::of(plan_memory(recipe, 0, 1, 1, open.queue.device.kind)));
  session.initialize();
  test::SyntheticSource source(recipe.model.vocab_size, 0, 1, 1 << 20);
  TrainerParts parts = session.parts();
  parts.train = &source;
  Trainer trainer(recipe.train, parts);
  StepTrace trace(session.queue, dir.path(), 0, 2, 2);
  trainer.add_hook(&trace);
  trainer.run(0);

  EXPECT_EQ(trace.path(), dir / "trace.json");
  const json file = json::parse(std::ifstream(trace.path()));
  std::set<int> steps;
  std::set<std::string> seen;
  double end = 0;
  for (const json& e : file.at("traceEvents")) {
    EXPECT_EQ(e.at("ph"), "X");
    EXPECT_GE(e.at("dur").get<double>(), 0);
    EXPECT_NEAR(e.at("ts").get<double>(), end, 0.01) << "events follow each other without a gap";
    end = e.at("ts").get<double>() + e.at("dur").get<double>();
    steps.insert(e.at("args").at("step").get<int>());
    seen.insert(e.at("name").get<std::string>() + " " + e.at("cat").get<std::string>());
  }
  EXPECT_EQ(steps, (std::set<int>{3, 4}));
  for (const char* wanted : {"linear forward", "linear backward", "attention forward", "add_rmsnorm backward",
                             "cross_entropy forward", "optimizer step", "gradient norm step"})
    EXPECT_TRUE(seen.contains(wanted)) << wanted;
  EXPECT_FALSE(session.tape.profiled()) << "steps after it are not watched";
}

}  // namespace
}  // namespace osprey
