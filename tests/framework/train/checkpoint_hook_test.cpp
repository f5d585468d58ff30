#include "framework/train/checkpoint_hook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "framework/config/reader.h"
#include "framework/parallel/thread_comm.h"
#include "kernels/core/random.h"
#include "launch/session.h"
#include "models/hf/hub_model.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using test::refusal;
using test::TempDir;

Recipe tiny_recipe(const std::string& precision, int zero) {
  const std::string text = R"(
run: { name: r, seed: 3 }
model: { layers: 2, hidden_size: 32, heads: 4, kv_heads: 2, ffn_size: 48, vocab_size: 64, norm: ssnorm, embedding_projection: true }
data: { tokenizer: bytes, train: [ { path: "x" } ], sequence_len: 16 }
optim:
  - { match: "*.{attn,mlp}.*.weight", kind: muon, learning_rate: 2.0e-2 }
  - { match: "*_projection.weight", kind: muon, learning_rate: 2.0e-2 }
  - { match: "*", kind: adamw, learning_rate: 1.0e-2 }
schedule: { kind: cosine, warmup_steps: 2 }
train: { steps: 9, global_batch_tokens: 256, micro_batch_size: 2, precision: )" +
                           precision + R"( }
parallel: { zero: )" + std::to_string(zero) +
                           " }\n";
  Recipe recipe;
  read_yaml(text, "tiny.yaml", {}, [&](Fields& f) { recipe.fields(f); });
  return recipe;
}

/// Sequences that can be learned, as a function of the step and their place in the global batch.
struct Counting final : BatchSource {
  const Communicator& world;
  explicit Counting(const Communicator& w) : world(w) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override {
    const int64_t rows = into.batch(), T = into.sequence();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (world.rank() * micro_steps + micro_step) * rows + r;
      const uint64_t draw = random_u64(9, static_cast<uint64_t>(step), static_cast<uint64_t>(row));
      for (int64_t t = 0; t < T; ++t) {
        const auto at = [&](int64_t k) {
          return static_cast<int32_t>((draw % 64 + static_cast<uint64_t>(k) * (1 + draw / 64 % 3)) % 64);
        };
        into.tokens.as<int32_t>()[r * T + t] = at(t);
        into.targets.as<int32_t>()[r * T + t] = at(t + 1);
        into.positions.as<int32_t>()[r * T + t] = static_cast<int32_t>(t);
      }
    }
    return into.targets.numel();
  }
};

struct Outcome {
  std::vector<double> losses;                          // of the steps that were done
  std::map<std::string, std::vector<float>> masters;   // of this rank's whole pieces, after the last step
  std::map<std::string, std::vector<uint8_t>> values;  // of all parameters
};

/// What one rank does: resumes from `dir` if it holds something, goes on to `last`, saves.
Outcome train_to(int64_t last, const Recipe& base, const fs::path& dir, Communicator& world) {
  Recipe recipe = base;
  Session session(recipe, world, Queue{},
                  {.activation_bytes = int64_t{64} << 20, .activation_gradient_bytes = 0});
  session.initialize();
  Counting source(world);
  TrainerParts parts = session.parts();
  parts.train = &source;
  Trainer trainer(recipe.train, parts);
  const HubLayout hub = hub_layout(
      recipe.model, {.sequence_len = 16, .dtype = recipe.train.precision, .bos_id = {}, .eos_id = {}});
  CheckpointHook hook({recipe.checkpoint, dir, {dump_recipe(recipe), hub, nullptr}, "hash", {}}, trainer);
  const auto state = hook.resume();
  Outcome out;
  StepResult r;
  for (int64_t step = state ? state->step : 0; step < last; ++step) {
    r = trainer.step(step);
    out.losses.push_back(r.loss);
    hook.after_step(trainer, r);
  }
  r.stopping = true;  // as after a signal
  hook.on_end(trainer, r);
  for (const auto& g : session.updater->groups())
    for (const ParamPiece& p : g.pieces)
      if (p.begin == 0 && p.end == p.full_shape.numel())
        out.masters[std::string(p.name)].assign(p.master.as<float>(),
                                                p.master.as<float>() + p.master.numel());
  for (const auto& p : session.params.all()) {
    const auto* bytes = static_cast<const uint8_t*>(p->value.data);
    out.values[p->name].assign(bytes, bytes + p->value.bytes());
  }
  return out;
}

/// Runs the stages (ranks, last step) one after the other in one run directory; returns rank 0's view.
Outcome train_in_stages(const std::vector<std::pair<int, int64_t>>& stages, const Recipe& recipe,
                        const fs::path& dir) {
  Outcome all;
  for (const auto& [ranks, last] : stages) {
    std::vector<Outcome> outcomes(static_cast<size_t>(ranks));
    run_thread_ranks(ranks, [&](Communicator& world) {
      outcomes[static_cast<size_t>(world.rank())] = train_to(last, recipe, dir, world);
    });
    for (const Outcome& o : outcomes) {
      EXPECT_EQ(o.losses, outcomes[0].losses);
      EXPECT_EQ(o.values, outcomes[0].values) << "ranks hold different parameters";
    }
    all.losses.insert(all.losses.end(), outcomes[0].losses.begin(), outcomes[0].losses.end());
    all.values = outcomes[0].values;
    all.masters.clear();
    for (const Outcome& o : outcomes) all.masters.insert(o.masters.begin(), o.masters.end());
  }
  return all;
}

TEST(Resume, AtTheSameNumberOfRanksEveryBitIsTheSame) {
  for (const char* precision : {"bf16", "fp32"})
    for (const auto& [ranks, zero] : {std::pair{1, 1}, {2, 0}, {2, 1}}) {
      TempDir straight_dir, cut_dir;
      const Recipe recipe = tiny_recipe(precision, zero);
      const Outcome straight = train_in_stages({{ranks, 6}}, recipe, straight_dir.path());
      const Outcome cut = train_in_stages({{ranks, 1}, {ranks, 4}, {ranks, 6}}, recipe, cut_dir.path());
      EXPECT_EQ(straight.losses, cut.losses) << precision << " " << ranks << " ranks, zero " << zero;
      EXPECT_EQ(straight.values, cut.values);
      EXPECT_EQ(straight.masters, cut.masters);
      EXPECT_LT(straight.losses.back(), straight.losses.front())
          << "nothing was learned; the test tests nothing";
    }
}

TEST(Resume, OnTwoThenFourThenOneRankTheRunGoesOnAsOnOne) {
  TempDir straight_dir, cut_dir;
  const Recipe recipe = tiny_recipe("fp32", 1);
  const Outcome straight = train_in_stages({{1, 9}}, recipe, straight_dir.path());
  const Outcome cut = train_in_stages({{2, 3}, {4, 6}, {1, 9}}, recipe, cut_dir.path());
  ASSERT_EQ(straight.losses.size(), cut.losses.size());
  for (size_t i = 0; i < straight.losses.size(); ++i)
    EXPECT_NEAR(straight.losses[i], cut.losses[i], 2e-5 * straight.losses[i]) << "step " << i;
  double worst = 0;
  for (const auto& [name, values] : straight.masters)
    for (size_t i = 0; i < values.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(values[i]) - cut.masters.at(name).at(i)));
  EXPECT_LT(worst, 2e-3) << "reduction order alone cannot move a parameter so far";
  EXPECT_LT(straight.losses.back(), straight.losses.front() - 0.1);
}

TEST(Resume, ForgettingMomentumWouldBeSeen) {
  // The guard of the test above: the same cut with zeroed state moves the losses far beyond its tolerance.
  TempDir straight_dir, cut_dir;
  const Recipe recipe = tiny_recipe("fp32", 1);
  const Outcome straight = train_in_stages({{1, 6}}, recipe, straight_dir.path());
  auto comm = make_self_comm();
  train_to(3, recipe, cut_dir.path(), *comm);
  const fs::path saved = *find_checkpoint("auto", cut_dir.path());
  // Rewrites the shard with its states at zero.
  {
    const ShardIndex index(saved);
    std::map<std::string, std::vector<float>> memory;
    std::vector<NamedPiece> pieces;
    for (const auto& [key, logical] : index.tensors()) {
      auto& m = memory[key];
      m.resize(static_cast<size_t>(logical.shape.numel()));
      const std::string slot = key.substr(key.find(':') + 1);
      pieces.push_back({key.substr(0, key.find(':')), slot, logical.shape, 0, logical.shape.numel(),
                        make_tensor(m.data(), {logical.shape.numel()}, DType::f32)});
      if (slot == "master") index.read(pieces.back());
    }
    PartialDirectory partial(saved);
    for (FileRecord& r : read_manifest(saved)) {
      if (r.name == shard_name(0)) continue;
      fs::copy_file(saved / r.name, partial.path() / r.name);
      partial.add(r);
    }
    fs::create_directory(partial.path() / "optimizer");
    FileRecord shard = write_shard(partial.path() / shard_name(0), pieces);
    shard.name = shard_name(0);
    partial.add(shard);
    partial.publish();
  }
  const Outcome cut = train_to(6, recipe, cut_dir.path(), *comm);
  double worst = 0;
  for (size_t i = 0; i < 3; ++i)
    worst = std::max(worst, std::abs(cut.losses[i] / straight.losses[i + 3] - 1));
  EXPECT_GT(worst, 1e-3);
}

TEST(Resume, AnotherRunIsRefusedSayingWhatDiffers) {
  TempDir dir;
  auto comm = make_self_comm();
  const Recipe recipe = tiny_recipe("bf16", 1);
  train_to(2, recipe, dir.path(), *comm);
  const auto with = [&](const std::function<void(Recipe&)>& change) {
    Recipe other = recipe;
    change(other);
    return refusal([&] { train_to(3, other, dir.path(), *comm); });
  };
  EXPECT_NE(with([](Recipe& r) { r.run.seed = 4; }).find("run.seed 3"), std::string::npos);
  EXPECT_NE(
      with([](Recipe& r) { r.train.global_batch_tokens = 128; }).find("global_batch_tokens must stay 256"),
      std::string::npos);
  const std::string shorter = with([](Recipe& r) { r.data.sequence_len = 8; });
  EXPECT_NE(shorter.find("read its 512 tokens as 32 sequences"), std::string::npos) << shorter;
  EXPECT_NE(shorter.find("data.sequence_len must stay 16"), std::string::npos) << shorter;
  const std::string wider = with([](Recipe& r) { r.model.ffn_size = 64; });
  EXPECT_NE(wider.find("layers.0.mlp.down.weight:master is (32, 48) in the checkpoint and (32, 64) here"),
            std::string::npos)
      << wider;
  const std::string adam = with([](Recipe& r) { r.optim.erase(r.optim.begin(), r.optim.begin() + 2); });
  EXPECT_NE(adam.find("layers.0.attn.k.weight:adam_m is not in the checkpoint"), std::string::npos) << adam;
  EXPECT_NE(with([](Recipe& r) { r.checkpoint.resume = "no/such/place"; }).find("no/such/place"),
            std::string::npos);
  EXPECT_NE(
      with([](Recipe& r) { r.checkpoint.resume = "none"; }).find("step-00000002 belongs to an earlier run"),
      std::string::npos);
  train_to(3, recipe, dir.path(), *comm);
  const std::string back = (dir / "step-00000002").string();
  EXPECT_NE(
      with([&](Recipe& r) { r.checkpoint.resume = back; }).find("step-00000003 belongs to an earlier run"),
      std::string::npos);
}

TEST(Resume, TheSavedModelIsTheOneThatWasTrained) {
  TempDir dir;
  auto comm = make_self_comm();
  const Recipe recipe = tiny_recipe("bf16", 1);
  const Outcome run = train_to(2, recipe, dir.path(), *comm);
  const HubModel hub(*find_checkpoint("auto", dir.path()));
  ParamStore loaded;
  make_model(hub.spec(), 16)->declare(loaded);
  loaded.materialize({}, DType::bf16, ParamStore::Gradients::off);
  hub.load({}, loaded);
  const Parameter& up = loaded.at("layers.1.mlp.up.weight");
  EXPECT_EQ(0, std::memcmp(up.value.data, run.values.at(up.name).data(), run.values.at(up.name).size()));
}

}  // namespace
}  // namespace osprey
