// Runs of several ranks, each with a GPU of its own that the executor plays.

#include <gtest/gtest.h>

#include <cmath>

#include "framework/parallel/thread_comm.h"
#include "tests/support/executor/executor.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using namespace test;

/// So many GPUs while this lives.
struct Gpus {
  explicit Gpus(int count) { executor::set_device_count(count); }
  ~Gpus() { executor::set_device_count(1); }
};

TEST(GpuRanks, LoseAsMuchAsOneRankOnTheCpu) {
  const auto changes = [](int ranks) {
    return tiny_recipe({"train.steps=3", fmt::format("train.micro_batch_size={}", 4 / ranks)}, ranks);
  };
  const TinyResult cpu = tiny_run(changes(1), 1, 1, 1 << 20, {}, DeviceKind::cpu);
  const Gpus two(2);
  const TinyResult gpus = tiny_run(changes(2), 2, 1, 1 << 20, {}, DeviceKind::cuda);
  ASSERT_EQ(cpu.losses.size(), gpus.losses.size());
  for (size_t i = 0; i < cpu.losses.size(); ++i) EXPECT_NEAR(cpu.losses[i], gpus.losses[i], 1e-4) << i;
}

TEST(GpuRanks, ReplayWhatTheySendEachOther) {
  const auto run = [](const char* graphs) {
    return tiny_run(tiny_recipe({"train.steps=5", fmt::format("train.cuda_graphs={}", graphs)}, 2), 2, 1,
                    1 << 20, {}, DeviceKind::cuda);
  };
  const Gpus two(2);
  const TinyResult eager = run("off"), replayed = run("on");
  EXPECT_EQ(replayed.replayed_steps, 3);
  EXPECT_EQ(eager.losses, replayed.losses);
  EXPECT_EQ(eager.parameters, replayed.parameters);
}

TEST(GpuRanks, AreAtMostAsManyAsGpus) {
  RunSpec spec;
  spec.device = RunSpec::DeviceChoice::automatic;
  std::vector<std::string> said(2);
  run_thread_ranks(2, [&](Communicator& world) {
    try {
      device_for(spec, world);
    } catch (const std::exception& e) {
      said[static_cast<size_t>(world.rank())] = e.what();
    }
  });
  EXPECT_NE(said[0].find("2 ranks on this host share 1 GPU"), std::string::npos) << said[0];
  EXPECT_EQ(said[0], said[1]);
}

}  // namespace
}  // namespace osprey
