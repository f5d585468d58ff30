// Whole runs on a GPU, or on the one that the executor plays.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "framework/telemetry/quantization_observer.h"
#include "launch/bench/block_bench.h"
#include "tests/support/test_bed.h"
#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

namespace {

class GpuRun : public testing::Test {
 protected:
  void SetUp() override {
    if (kernels::gpu_count() == 0) GTEST_SKIP() << kernels::why_no_gpu();
  }
};

TinyResult on_gpu(const std::vector<std::string>& overrides,
                  const std::function<void(Session&, int64_t)>& on_step = {}) {
  return tiny_run(tiny_recipe(overrides), 1, 1, 1 << 20, on_step, DeviceKind::cuda);
}

/// An evaluation of twelve sequences, two at a time, of the model as it begins.
EvalResult evaluation_on(DeviceKind kind) {
  const Recipe recipe = tiny_recipe();
  const auto world = make_self_comm();
  const kernels::OpenQueue open = kernels::open_queue({kind, 0}, 1);
  Session session(recipe, *world, open.queue, SessionMemory::of(plan_memory(recipe, 0, 1, 1, kind)));
  session.initialize();
  SyntheticSource source(recipe.model.vocab_size, 0, 1, 1);
  TrainerParts parts = session.parts();
  parts.train = parts.validation = &source;
  parts.validation_sequences = 12;
  return Trainer(recipe.train, parts).evaluate(0);
}

}  // namespace

TEST_F(GpuRun, EvaluatesAsOnTheCpu) {
  const EvalResult cpu = evaluation_on(DeviceKind::cpu), gpu = evaluation_on(DeviceKind::cuda);
  EXPECT_EQ(gpu.counted_tokens, cpu.counted_tokens);
  EXPECT_NEAR(gpu.loss, cpu.loss, 1e-4);
  ASSERT_TRUE(gpu.standard_error && cpu.standard_error);
  EXPECT_GT(*cpu.standard_error, 0);
  EXPECT_NEAR(*gpu.standard_error, *cpu.standard_error, 1e-4 * *cpu.standard_error + 1e-7);
}

TEST_F(GpuRun, FineTunesAsOnTheCpu) {
  const std::string small = "[{match: '*', kind: adamw, learning_rate: 5.0e-3, moments: int8}]";
  for (const char* method : {"{method: lisa, active_layers: 1, interval: 4}",
                             "{method: owlore, active_layers: 1, interval: 6, rank: 8, refresh_every: 6}",
                             "{method: owlore, active_layers: 1, interval: 4, rank: 8, reference: true}",
                             "{method: apollo, rank: 8, refresh_every: 4}"}) {
    const std::vector<std::string> changes = {"model.norm=rmsnorm", "model.embedding_projection=false",
                                              "optim=" + small, fmt::format("finetune={}", method),
                                              "train.steps=9"};
    const TinyResult cpu = tiny_run(tiny_recipe(changes), 1, 1, 1 << 20, {}, DeviceKind::cpu),
                     gpu = on_gpu(changes);
    EXPECT_LT(largest_difference(cpu.losses, gpu.losses), 2e-3) << method;
    EXPECT_LT(gpu.losses.back(), gpu.losses.front());
    EXPECT_GT(gpu.replayed_steps, 0) << method;
  }
}

TEST_F(GpuRun, UpdatesInBackwardAsOnTheCpu) {
  for (const char* method : {"{method: full}", "{method: lisa, active_layers: 1, interval: 4}"}) {
    const std::vector<std::string> changes = {"model.norm=rmsnorm",
                                              "model.embedding_projection=false",
                                              "train.micro_batch_size=8",
                                              "train.max_grad_norm=null",
                                              "train.steps=9",
                                              "train.updates=in_backward",
                                              fmt::format("finetune={}", method),
                                              "optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3}]"};
    const TinyResult cpu = tiny_run(tiny_recipe(changes), 1, 1, 1 << 20, {}, DeviceKind::cpu),
                     gpu = on_gpu(changes);
    EXPECT_LT(largest_difference(cpu.losses, gpu.losses), 2e-3) << method;
    EXPECT_LT(gpu.losses.back(), gpu.losses.front());
    EXPECT_GT(gpu.replayed_steps, 0) << method;
  }
}

TEST_F(GpuRun, LosesAsMuchAsOnTheCpu) {
  for (const auto& [precision, tolerance] : {std::pair{"fp32", 1e-4}, {"bf16", 2e-2}}) {
    const std::vector<std::string> changes = {"train.steps=4", fmt::format("train.precision={}", precision)};
    const TinyResult cpu = tiny_run(tiny_recipe(changes), 1, 1, 1 << 20, {}, DeviceKind::cpu),
                     gpu = on_gpu(changes);
    EXPECT_LT(largest_difference(cpu.losses, gpu.losses), tolerance) << precision;
    EXPECT_LT(largest_difference(cpu.grad_norms, gpu.grad_norms), tolerance * cpu.grad_norms[0]) << precision;
  }
}

TEST_F(GpuRun, ReplaysStepsBitForBit) {
  const TinyResult eager = on_gpu({"train.cuda_graphs=off"}), replayed = on_gpu({"train.cuda_graphs=on"});
  EXPECT_EQ(eager.replayed_steps, 0);
  EXPECT_EQ(replayed.replayed_steps, 4) << "of six steps the first two run as they are";
  EXPECT_EQ(eager.losses, replayed.losses);
  EXPECT_EQ(eager.grad_norms, replayed.grad_norms);
  EXPECT_TRUE(eager.parameters == replayed.parameters);
}

TEST_F(GpuRun, LearnsStepsAndFreezesWeightsAsOnTheCpu) {
  // Steps are learnt from the first step on, and weights freeze from step 3 on, which is recorded anew.
  const std::vector<std::string> changes = {
      "train.steps=6",
      "quant=[{match: 'layers.0.{attn,mlp}.*.weight', preset: lsq}, {match: 'layers.1.{attn,mlp}.*.weight', "
      "weights: {format: int4_row, scale: stats}, freeze: {first_step: 3, anneal_steps: 1, boundary: 0.1}}]"};
  const auto with = [&](const char* graphs) {
    std::vector<std::string> all = changes;
    all.push_back(graphs);
    return all;
  };
  double frozen = 0, elements = 0;
  const TinyResult eager = on_gpu(with("train.cuda_graphs=off")),
                   replayed = on_gpu(with("train.cuda_graphs=on"), [&](Session&s, int64_t step) {
                     if (step == 6)
                       for (const WeightFreezer::Count& c : s.freezer->counts())
                         frozen += c.frozen, elements += c.elements;
                   });
  EXPECT_EQ(replayed.replayed_steps, 2) << "of three and three steps";
  EXPECT_EQ(eager.losses, replayed.losses);
  EXPECT_EQ(eager.grad_norms, replayed.grad_norms);
  EXPECT_TRUE(eager.parameters == replayed.parameters);
  EXPECT_GT(frozen, 0.75 * elements);
  EXPECT_LT(frozen, elements);
  const TinyResult cpu = tiny_run(tiny_recipe(changes), 1, 1, 1 << 20, {}, DeviceKind::cpu);
  EXPECT_LT(largest_difference(cpu.losses, eager.losses), 1e-2);
}

TEST_F(GpuRun, RecordsAgainWhenOtherParametersAreTrained) {
  // The first layer freezes after the fourth step: two steps as they are and two replays, and the same again.
  const auto freeze = [](Session& s, int64_t step) {
    for (const auto& p : s.params.all())
      if (p->layer == 0 && step == 4) p->trainable = false;
  };
  const std::vector<std::string> eight = {"train.steps=8"};
  const TinyResult replayed = on_gpu(eight, freeze),
                   eager = on_gpu({"train.steps=8", "train.cuda_graphs=off"}, freeze);
  EXPECT_EQ(replayed.replayed_steps, 4);
  EXPECT_EQ(replayed.losses, eager.losses);
  EXPECT_TRUE(replayed.parameters == eager.parameters);
}

TEST_F(GpuRun, ReplaysQuantizedStepsBitForBitAndRecordsAgainWhenTheyBegin) {
  const std::vector<std::string> late = {"train.steps=6", "quant=[{preset: quartet, first_step: 3}]"};
  std::vector<std::string> without = late;
  without.push_back("train.cuda_graphs=off");
  const TinyResult replayed = on_gpu(late), eager = on_gpu(without);
  EXPECT_EQ(replayed.replayed_steps, 2) << "two steps as they are, one replayed, twice";
  EXPECT_EQ(replayed.losses, eager.losses);
  EXPECT_TRUE(replayed.parameters == eager.parameters);
}

TEST_F(GpuRun, ReplaysCalibrationBitForBitAndRecordsAgainWhenItHasDecided) {
  const auto both = [](const char* quant) {
    const TinyResult replayed = on_gpu({"train.steps=8", quant}),
                     eager = on_gpu({"train.steps=8", quant, "train.cuda_graphs=off"});
    EXPECT_EQ(replayed.replayed_steps, 4) << "two steps as they are, two replayed, twice";
    EXPECT_EQ(replayed.losses, eager.losses);
    EXPECT_TRUE(replayed.parameters == eager.parameters);
    return replayed.losses;
  };
  const auto without = both("quant=[{preset: adahop, calibration_steps: 4, outlier_ratio: 1.4}]"),
             with =
                 both("quant=[{preset: adahop, calibration_steps: 4, outlier_ratio: 1.4, outlier_rows: 5}]");
  EXPECT_EQ(with[3], without[3]);
  EXPECT_NE(with[4], without[4]) << "no layer extracts rows; the test tests less";
}

TEST_F(GpuRun, WatchesQuantizationBetweenReplaysAndInThemWithoutChangingABit) {
  // Oscillation is followed in all steps, the rest measured in two.
  struct Observe final : StepHook {
    Observe(Session& s, std::string& text_)
        : world(s.world),
          oscillation(s.queue, s.schemes->weights_of(4)),
          observer(s.queue, s.params, &oscillation),
          text(text_) {}
    void before_step(Trainer& trainer, int64_t step) override {
      observer.begin_step(step % 4 == 3);
      trainer.watch_quantization(&observer);
    }
    void after_step(Trainer&, const StepResult& r) override {
      if (r.step % 4 != 0) return;
      for (const QuantizationRow& row : observer.result(world))
        text += quantization_entry(row, r.step, 0).line();
    }
    Communicator& world;
    OscillationTracker oscillation;
    QuantizationObserver observer;
    std::string& text;
  };
  const auto watched = [](const char* graphs, std::string& text) {
    return tiny_run(tiny_recipe({"train.steps=8", "quant=[{preset: quartet}]", graphs}), 1, 1, 1 << 20, {},
                    DeviceKind::cuda, [&](Session& s) { return std::make_unique<Observe>(s, text); });
  };
  std::string recorded_saw, eager_saw;
  const TinyResult recorded = watched("train.cuda_graphs=on", recorded_saw),
                   eager = watched("train.cuda_graphs=off", eager_saw),
                   plain = on_gpu({"train.steps=8", "quant=[{preset: quartet}]", "train.cuda_graphs=off"});
  EXPECT_EQ(recorded.replayed_steps, 4) << "all after the second but the two that are measured";
  EXPECT_EQ(recorded.losses, plain.losses);
  EXPECT_TRUE(recorded.parameters == plain.parameters);
  EXPECT_EQ(eager.losses, plain.losses);
  EXPECT_EQ(recorded_saw, eager_saw);
  EXPECT_NE(recorded_saw.find("\"oscillating\":0.0"), std::string::npos) << recorded_saw;
}

TEST_F(GpuRun, RecordsTheQuantizationOfWeightsThatAnEvaluationHasQuantizedAlready) {
  // The model runs after each step, on the weights of then.
  struct Evaluate final : StepHook {
    explicit Evaluate(std::vector<double>& s) : seen(s) {}
    void after_step(Trainer& trainer, const StepResult&) override {
      Tape& tape = *trainer.parts().tape;
      tape.set_mode(Tape::Mode::evaluate);
      for (const double v : read(tape.value(trainer.parts().model->hidden(tape, trainer.last_batch()))))
        seen.push_back(v);
      tape.reset();
    }
    std::vector<double>& seen;
  };
  const auto run = [](const char* graphs, std::vector<double>& seen) {
    return tiny_run(tiny_recipe({"train.steps=5", "quant=[{preset: quartet}]", graphs}), 1, 1, 1 << 20, {},
                    DeviceKind::cuda, [&](Session&) { return std::make_unique<Evaluate>(seen); });
  };
  std::vector<double> recorded_saw, eager_saw;
  const TinyResult recorded = run("train.cuda_graphs=on", recorded_saw),
                   eager = run("train.cuda_graphs=off", eager_saw);
  EXPECT_EQ(recorded.replayed_steps, 3);
  EXPECT_EQ(recorded.losses, eager.losses);
  EXPECT_TRUE(recorded.parameters == eager.parameters);
  EXPECT_TRUE(recorded_saw == eager_saw) << "evaluations see the weights of their step";
}

TEST_F(GpuRun, UsesThePlannedMemoryWhenItQuantizes) {
  const std::vector<std::string> changes = {"train.steps=2", "train.precision=bf16",
                                            "quant=[{preset: quartet}]"};
  const std::vector<MemoryCategory> planned = plan_memory(tiny_recipe(changes), 0, 1, 1, DeviceKind::cuda),
                                    used = on_gpu(changes).memory;
  ASSERT_EQ(planned.size(), used.size());
  for (size_t i = 0; i < planned.size(); ++i) EXPECT_EQ(planned[i].bytes, used[i].bytes) << planned[i].name;
}

TEST_F(GpuRun, RecomputesWithoutChangingABit) {
  const TinyResult plain = on_gpu({"train.steps=3", "train.precision=bf16"});
  for (const char* recompute : {"attention", "block"}) {
    const TinyResult again =
        on_gpu({"train.steps=3", "train.precision=bf16", fmt::format("train.recompute={}", recompute)});
    EXPECT_EQ(plain.losses, again.losses) << recompute;
    EXPECT_TRUE(plain.parameters == again.parameters) << recompute;
  }
}

TEST_F(GpuRun, UsesTheMemoryThatWasPlanned) {
  const std::vector<std::string> changes = {"train.steps=3", "train.precision=bf16"};
  const Recipe recipe = tiny_recipe(changes);
  const std::vector<MemoryCategory> planned = plan_memory(recipe, 0, 1, 1, DeviceKind::cuda),
                                    used = on_gpu(changes).memory;
  ASSERT_EQ(planned.size(), used.size());
  for (size_t i = 0; i < planned.size(); ++i) {
    EXPECT_EQ(planned[i].name, used[i].name);
    EXPECT_EQ(planned[i].bytes, used[i].bytes) << planned[i].name;
  }
}

TEST_F(GpuRun, KeepsItsOptimizerStateOnTheHostWithoutChangingABit) {
  const TinyResult plain = on_gpu({"train.steps=4", "train.precision=bf16"}),
                   offloaded =
                       on_gpu({"train.steps=4", "train.precision=bf16", "parallel.offload_optimizer=true"});
  EXPECT_EQ(plain.losses, offloaded.losses);
  EXPECT_TRUE(plain.parameters == offloaded.parameters);
  for (const MemoryCategory& c : offloaded.memory)
    EXPECT_EQ(c.where == MemoryCategory::Where::host,
              c.name == "optimizer state" || c.name == "checkpoint copies");
}

TEST_F(GpuRun, SkipsAnUpdateWithoutAskingTheHost) {
  const TinyResult r = on_gpu({"train.steps=4"}, [](Session& s, int64_t step) {
    if (step == 2) write(s.params.at("layers.0.mlp.up.weight").value, Values(96 * 64, NAN));
  });
  EXPECT_TRUE(std::isfinite(r.losses[1]));
  EXPECT_TRUE(std::isnan(r.losses[2]));
  for (double v : r.parameters[0]) ASSERT_TRUE(std::isfinite(v)) << "an update from a NaN loss was applied";
}

// Products with their images, lists of wide rows and quantizers can be recorded: nothing in them asks the
// host.
TEST_F(GpuRun, BenchesEveryEngineOfPackedProducts) {
  const kernels::OpenQueue open = kernels::open_queue({DeviceKind::cuda, 0}, 1);
  const int64_t sizes[] = {128};
  testing::internal::CaptureStdout();
  bench::bench_block_engines(open.queue, sizes);
  const std::string out = testing::internal::GetCapturedStdout();
  for (const char* engine : {"tiles", "definition"}) EXPECT_NE(out.find(engine), std::string::npos) << out;
  if (kernels::gpu_info(0).compute_capability == 90) {
    EXPECT_NE(out.find("mxfp4 x mxfp4       fp8"), std::string::npos) << out;
  }
}
