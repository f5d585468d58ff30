// Training runs whose quantization is watched.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>

#include "framework/telemetry/run_watch.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"

using namespace osprey;
using namespace osprey::test;

namespace {

/// The rows of every measured step, by rank.
using Seen = std::map<int, std::vector<std::vector<QuantizationRow>>>;

struct Observe final : StepHook {
  Observe(Session& s, Seen& seen_, bool between_)
      : world(s.world), observer(s.queue, s.params), seen(seen_), between(between_) {}
  void before_step(Trainer& trainer, int64_t) override {
    observer.begin_step(true);
    trainer.watch_quantization(&observer);
  }
  void after_step(Trainer& trainer, const StepResult&) override {
    auto rows = observer.result(world);
    const std::lock_guard lock(mutex);
    seen[world.rank()].push_back(std::move(rows));
    if (!between) return;
    OutlierObserver outliers({}, trainer.parts().queue);
    observe_both_protocols(outliers, *trainer.parts().model, *trainer.parts().tape, trainer.last_batch(), 0);
  }
  static inline std::mutex mutex;
  Communicator& world;
  QuantizationObserver observer;
  Seen& seen;
  bool between;  // does the model run between steps, which quantizes its weights?
};

struct Observed {
  TinyResult run;
  Seen seen;
};
Observed observed(const std::vector<std::string>& changes, int ranks = 1, bool between = false) {
  Observed o;
  o.run = tiny_run(tiny_recipe(changes, ranks), ranks, 1, 1 << 20, {}, test_device().kind,
                   [&](Session& s) { return std::make_unique<Observe>(s, o.seen, between); });
  return o;
}

std::string text(const std::vector<std::vector<QuantizationRow>>& steps) {
  std::string all;
  for (size_t s = 0; s < steps.size(); ++s)
    for (const QuantizationRow& r : steps[s]) all += quantization_entry(r, static_cast<int64_t>(s), 0).line();
  return all;
}

}  // namespace

TEST(QuantizationWatch, DoesNotChangeABitOfTheRun) {
  for (const char* preset : {"quartet", "nvfp4", "weight_only"}) {
    const std::vector<std::string> changes = {fmt::format("quant=[{{preset: {}}}]", preset),
                                              "train.precision=bf16", "train.steps=3"};
    const TinyResult plain = tiny_run(tiny_recipe(changes));
    const Observed o = observed(changes);
    EXPECT_EQ(o.run.losses, plain.losses) << preset;
    EXPECT_EQ(o.run.parameters, plain.parameters) << preset;
    EXPECT_FALSE(o.seen.at(0).at(2).empty()) << preset;
  }
}

TEST(QuantizationWatch, SeesEveryOperandOfEveryLayerInEveryStep) {
  const std::vector<std::string> changes = {"quant=[{preset: quartet}]", "train.steps=3"};
  const Observed o = observed(changes);
  // 2 layers: 7 weights and gradients, 4 inputs.
  for (const auto& rows : o.seen.at(0)) {
    ASSERT_EQ(rows.size(), 2u * (7 + 4 + 7));
    std::map<std::string, int> count;
    for (const QuantizationRow& r : rows) {
      ++count[name(r.role)];
      const int64_t tokens = 256;
      if (r.weight == "attn.q") {
        EXPECT_EQ(r.elements, r.role == QuantizationWatch::Role::weights ? 64 * 64 : tokens * 64);
      }
      EXPECT_GT(*r.relative_error, 1e-3);
      EXPECT_LT(*r.relative_error, 0.1);
    }
    EXPECT_EQ(count, (std::map<std::string, int>{{"weights", 14}, {"activations", 8}, {"gradients", 14}}));
  }
  const Observed between = observed(changes, 1, true);
  EXPECT_EQ(text(between.seen.at(0)), text(o.seen.at(0)))
      << "weights that an evaluation has quantized already";
}

TEST(QuantizationWatch, CountsNothingTwiceWhereBlocksAreComputedAgain) {
  const auto run = [](const char* recompute) {
    return text(
        observed({"quant=[{preset: quartet}]", "train.steps=2", fmt::format("train.recompute={}", recompute)})
            .seen.at(0));
  };
  const std::string plain = run("none");
  EXPECT_EQ(run("block"), plain);
  EXPECT_EQ(run("attention"), plain);
}

TEST(QuantizationWatch, RanksAgreeWithEachOtherAndWithOne) {
  const std::vector<std::string> changes = {"quant=[{preset: quartet}]", "train.steps=2"};
  const Observed one = observed(changes), two = observed(changes, 2);
  EXPECT_EQ(text(two.seen.at(0)), text(two.seen.at(1)));
  const auto &a = one.seen.at(0).at(0), &b = two.seen.at(0).at(0);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].elements, b[i].elements) << a[i].weight;
    EXPECT_NEAR(*a[i].relative_error / *b[i].relative_error, 1, 1e-9) << a[i].weight;
    EXPECT_EQ(a[i].underflow, b[i].underflow) << a[i].weight;
    EXPECT_EQ(a[i].clipped, b[i].clipped) << a[i].weight;
  }
}

TEST(QuantizationWatch, OscillationIsFollowedOnRankZeroAndPlanned) {
  const std::vector<std::string> changes = {"quant=[{preset: quartet}]", "telemetry.oscillation=true"};
  const auto category = [&](int rank) {
    int64_t bytes = 0;
    for (const MemoryCategory& c : plan_memory(tiny_recipe(changes, 2), rank, 2, 1, DeviceKind::cpu))
      if (c.name == "oscillation") bytes = c.bytes;
    return bytes;
  };
  const double elements = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
  EXPECT_GT(static_cast<double>(category(0)), 5 * elements);
  EXPECT_LT(static_cast<double>(category(0)), 5.1 * elements);
  EXPECT_EQ(category(1), 0);
  std::mutex mutex;
  std::vector<size_t> followed(2);
  tiny_run(tiny_recipe(changes, 2), 2, 1, 1 << 20, [&](Session& s, int64_t) {
    const std::lock_guard lock(mutex);
    followed[static_cast<size_t>(s.world.rank())] = s.followed_weights().size();
  });
  EXPECT_EQ(followed, (std::vector<size_t>{14, 0}));
}

TEST(QuantizationWatch, OscillationNeedsWeightsOfFourBits) {
  for (const char* quant : {"quant=[]", "quant=[{preset: mxint8}]"}) {
    const std::string words = refusal([&] { tiny_recipe({quant, "telemetry.oscillation=true"}); });
    EXPECT_NE(words.find("telemetry.oscillation: follows weights of 4 bits, and no group"), std::string::npos)
        << words;
  }
  EXPECT_TRUE(
      tiny_recipe({"quant=[{preset: weight_only}]", "telemetry.oscillation=true"}).telemetry.oscillation);
  const std::string idle = refusal([] {
    tiny_recipe({"quant=[{preset: quartet}]", "telemetry.quantization=false", "telemetry.oscillation=true"});
  });
  EXPECT_NE(idle.find("quantization is true"), std::string::npos) << idle;
}

TEST(QuantizationWatch, IsWrittenAfterTheFirstTheDueAndTheLastStep) {
  const TempDir dir;
  const auto steps_of = [&](const std::vector<std::string>& changes,
                            std::optional<int64_t> resumed_step = {}) {
    tiny_run(tiny_recipe(changes), 1, 1, 1 << 20, {}, test_device().kind, [&](Session& s) {
      RunWatchOptions options;
      options.directory = dir / "run";
      options.telemetry = tiny_recipe(changes).telemetry;
      options.telemetry.outliers = false;
      options.resumed_step = resumed_step;
      return std::make_unique<RunWatch>(options, s.world, s.queue);
    });
    std::map<int64_t, int> steps;
    std::ifstream in(dir / "run" / "metrics.jsonl");
    for (std::string line; std::getline(in, line);)
      if (const auto j = nlohmann::json::parse(line); j["event"] == "quantization") {
        EXPECT_EQ(j["tokens"], j["step"].get<int64_t>() * 256);
        ++steps[j["step"].get<int64_t>()];
      }
    return steps;
  };
  const std::string every = "telemetry.quantization_every_steps=3";
  EXPECT_EQ(steps_of({"quant=[{preset: quartet}]", "train.steps=8", every}),
            (std::map<int64_t, int>{{1, 36}, {3, 36}, {6, 36}, {8, 36}}));
  EXPECT_EQ(steps_of({"quant=[{preset: quartet, first_step: 4, end_step: 7}]", "train.steps=8", every}),
            (std::map<int64_t, int>{{5, 36}, {6, 36}}))
      << "the first step that quantizes, and none that does not";
  const std::string measured = "quant=[{preset: adahop, first_step: 1, calibration_steps: 3}]";
  EXPECT_EQ(steps_of({measured, "train.steps=6", "telemetry.quantization_every_steps=100"}),
            (std::map<int64_t, int>{{5, 36}, {6, 36}}))
      << "calibration quantizes nothing";
  const std::string rarely = "telemetry.quantization_every_steps=100", late = "train.steps=8";
  EXPECT_EQ(steps_of({"quant=[{preset: quartet, first_step: 4}]", late, rarely}, 0),
            (std::map<int64_t, int>{{5, 36}, {8, 36}}))
      << "a run that went on before its first quantized step";
  EXPECT_EQ(steps_of({"quant=[{preset: quartet}]", late, rarely}, 0), (std::map<int64_t, int>{{8, 36}}))
      << "a run that went on after it";
  EXPECT_TRUE(
      steps_of({"quant=[{preset: quartet}]", "train.steps=2", "telemetry.quantization=false"}).empty());
  EXPECT_TRUE(steps_of({"train.steps=2"}).empty());
}
