// Methods of fine-tuning as whole runs: what trains, what stays, what ranks and resumed runs agree on.

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "models/hf/hub_model.h"
#include "tests/support/finetune_run.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using test::finetune_recipe;
using test::from_directory;
using test::model_directory;
using test::Outcome;
using test::Overrides;
using test::TempDir;
using test::tiny_run;
using test::TinyResult;
using test::train_in_stages;

Recipe recipe_of(const std::string& method, Overrides more = {}, int64_t ranks = 1) {
  return finetune_recipe(method, std::move(more), ranks);
}

const char* const lisa = "{method: lisa, active_layers: 2, interval: 2}";
const char* const owlore = "{method: owlore, active_layers: 2, interval: 3, rank: 8, refresh_every: 2}";
const char* const published =
    "{method: owlore, active_layers: 2, interval: 1, rank: 8, refresh_every: 2, reference: true}";
const char* const badam = "{method: badam, interval: 2}";
const char* const galore = "{method: galore, rank: 8, refresh_every: 3}";
const char* const apollo = "{method: apollo, rank: 8, refresh_every: 3}";
const char* const apollo_mini = "{method: apollo, rank: 1, refresh_every: 3, scaling: tensor, scale: 4}";

/// The final values of the parameters whose names contain `part`, and their names.
std::vector<std::vector<double>> parameters_of(const Recipe& recipe, const TinyResult& result,
                                               const std::string& part,
                                               std::vector<std::string>* names = nullptr) {
  ParamStore params;
  make_model(recipe.model, recipe.data.sequence_len)->declare(params);
  std::vector<std::vector<double>> found;
  for (size_t i = 0; i < params.all().size(); ++i) {
    if (params.all()[i]->name.find(part) == std::string::npos) continue;
    found.push_back(result.parameters[i]);
    if (names) names->push_back(params.all()[i]->name);
  }
  return found;
}

double furthest(const TinyResult& a, const TinyResult& b) {
  double d = 0;
  for (size_t i = 0; i < a.parameters.size(); ++i)
    d = std::max(d, test::largest_difference(a.parameters[i], b.parameters[i]));
  return d;
}

TEST(Finetune, EveryLayerAtATimeIsTrainingInFull) {
  const TinyResult full = tiny_run(recipe_of("{method: full}")),
                   all = tiny_run(recipe_of("{method: lisa, active_layers: 4, interval: 2}"));
  EXPECT_EQ(full.losses, all.losses);
  EXPECT_EQ(full.parameters, all.parameters);
}

TEST(Finetune, LayersThatSleepKeepEveryBit) {
  // Of four layers two train, and the choice never changes.
  const Recipe recipe =
      recipe_of("{method: lisa, active_layers: 2, interval: 100}",
                {"optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3, weight_decay: 0.1}]"});
  std::vector<std::vector<double>> start;
  const auto before = [&](Session& s) {
    for (const auto& p : s.params.all()) start.push_back(test::read(p->value));
    return std::unique_ptr<StepHook>();
  };
  const TinyResult result = tiny_run(recipe, 1, 1, 1 << 20, {}, test::test_device().kind, before);
  TinyResult untrained;
  untrained.parameters = start;
  int moved_layers = 0;
  for (int l = 0; l < 4; ++l) {
    const std::string layer = fmt::format("layers.{}.", l);
    const auto now = parameters_of(recipe, result, layer), then = parameters_of(recipe, untrained, layer);
    size_t moved = 0;
    for (size_t i = 0; i < now.size(); ++i) moved += now[i] != then[i];
    EXPECT_TRUE(moved == 0 || moved == now.size()) << layer << ": " << moved << " of " << now.size();
    moved_layers += moved > 0;
  }
  EXPECT_EQ(moved_layers, 2);
  EXPECT_NE(parameters_of(recipe, result, "embed"), parameters_of(recipe, untrained, "embed"));
}

TEST(Finetune, InASubspaceOfFullRankTheStepIsAdamsInARotatedBasis) {
  // With a single step from zero moments Adam's direction is a sign in the rotated basis, so its norm is that
  // of the unrotated one up to eps: sqrt(numel).
  const Overrides one = {"train.steps=1",
                         "optim=[{match: '*', kind: adamw, learning_rate: 1.0e-3, weight_decay: 0}]"};
  const Recipe recipe = recipe_of("{method: galore, rank: 32, targets: 'layers.*.attn.{k,v}.weight'}", one);
  std::vector<std::vector<double>> start;
  const TinyResult result = tiny_run(recipe, 1, 1, 1 << 20, {}, test::test_device().kind, [&](Session& s) {
    for (const auto& p : s.params.all()) start.push_back(test::read(p->value));
    return std::unique_ptr<StepHook>();
  });
  TinyResult before;
  before.parameters = start;
  const auto now = parameters_of(recipe, result, "attn.k"), then = parameters_of(recipe, before, "attn.k");
  ASSERT_EQ(now.size(), 4u);
  for (size_t i = 0; i < now.size(); ++i) {
    double square = 0;
    for (size_t j = 0; j < now[i].size(); ++j) square += std::pow(now[i][j] - then[i][j], 2);
    EXPECT_NEAR(std::sqrt(square / static_cast<double>(now[i].size())), 1e-3, 5e-5);
  }
}

TEST(Finetune, EveryMethodLearns) {
  const Overrides longer = {"train.steps=40"};
  for (const std::string& method :
       {std::string("{method: full}"), std::string(lisa), std::string(owlore), std::string(galore),
        std::string(apollo), std::string(apollo_mini), std::string("{method: badam, interval: 5}")}) {
    const TinyResult r = tiny_run(recipe_of(method, longer), 1, 1, 4);
    EXPECT_LT(r.losses.back(), r.losses.front() - (method.find("badam") != std::string::npos ? 0.02 : 0.3))
        << method;
  }
}

TEST(Finetune, MethodsLearnInBf16WithoutMastersAndWithSmallMoments) {
  for (const char* moments : {"fp32", "bf16", "int8"}) {
    const Overrides small = {
        "train.steps=40", "train.precision=bf16", "train.master_weights=none",
        fmt::format("optim=[{{match: '*', kind: adamw, learning_rate: 5.0e-3, moments: {}}}]", moments)};
    for (const char* method : {"{method: full}", owlore, apollo}) {
      const TinyResult r = tiny_run(recipe_of(method, small), 1, 1, 4);
      EXPECT_LT(r.losses.back(), r.losses.front() - 0.3) << method << " " << moments;
    }
  }
}

TEST(Finetune, MomentsOfProjectionsAreAsSmallAsTheirRank) {
  // Two moments of 4 bytes for every number of a projection, whose side is the longer one of its matrix.
  std::map<std::string, int64_t> full, small;
  for (const auto& c : plan_memory(recipe_of("{method: full}"), 0, 1, 1, DeviceKind::cpu))
    full[c.name] = c.bytes;
  for (const auto& c : plan_memory(recipe_of("{method: apollo, rank: 2}"), 0, 1, 1, DeviceKind::cpu))
    small[c.name] = c.bytes;
  EXPECT_EQ(full["gradients"], small["gradients"]);
  ParamStore params;
  const Recipe recipe = recipe_of("{method: full}");
  make_model(recipe.model, 32)->declare(params);
  int64_t saved = 0;
  for (const auto& p : params.all())
    if (p->layer >= 0 && p->matrix())
      saved += 8 * (p->shape.numel() - 2 * std::max(p->shape[0], p->shape[1]));
  EXPECT_NEAR(static_cast<double>(full["optimizer state"] - small["optimizer state"]),
              static_cast<double>(saved), 0.02 * static_cast<double>(saved));
}

TEST(Finetune, RanksAgree) {
  for (const char* method : {lisa, owlore, published, galore, badam, apollo, apollo_mini}) {
    const TinyResult one = tiny_run(recipe_of(method));
    for (const int ranks : {2, 4}) {
      const TinyResult more = tiny_run(recipe_of(method, {}, ranks), ranks);
      ASSERT_EQ(one.losses.size(), more.losses.size());
      for (size_t i = 0; i < one.losses.size(); ++i) {
        EXPECT_NEAR(one.losses[i], more.losses[i], 2e-5) << method;
        EXPECT_NEAR(one.grad_norms[i], more.grad_norms[i], 2e-3 * one.grad_norms[i])
            << method << " step " << i;
      }
      EXPECT_LT(furthest(one, more), 2e-3) << method << " on " << ranks;
    }
  }
}

TEST(Finetune, MemoryIsWhatThePlanSaysAndDoesNotGrow) {
  for (const char* method : {lisa, owlore, published, galore, badam, apollo}) {
    const Recipe recipe = recipe_of(method, {"train.steps=12"});
    const auto planned = plan_memory(recipe, 0, 1, 1, test::test_device().kind);
    std::vector<int64_t> state;
    const TinyResult r = tiny_run(recipe, 1, 1, 1 << 20, [&](Session& s, int64_t) {
      state.push_back(s.params.gradient_bytes() + s.updater->state_bytes() + s.finetuning->basis_bytes());
    });
    EXPECT_EQ(std::set<int64_t>(state.begin(), state.end()).size(), 1u) << method;
    for (const MemoryCategory& p : planned)
      for (const MemoryCategory& m : r.memory)
        if (m.name == p.name && m.name != "token buffers" && m.name != "packed weights") {
          EXPECT_NEAR(static_cast<double>(m.bytes), static_cast<double>(p.bytes),
                      0.05 * static_cast<double>(p.bytes))
              << method << ": " << m.name;
        }
  }
}

TEST(Finetune, ResumingIsExactWhereverItHappens) {
  const Overrides none, small = {"train.precision=bf16", "train.master_weights=none",
                                 "optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3, moments: int8}]"};
  Overrides brief = small;
  brief.insert(brief.end(),
               {"train.micro_batch_size=8", "train.max_grad_norm=null", "train.updates=in_backward"});
  for (const char* method : {lisa, owlore, published, galore, badam, apollo})
    for (const Overrides& overrides : {none, small, brief}) {
      const Outcome whole = train_in_stages(method, overrides, {{1, 9}});
      // In the middle of a turn, and where one ends.
      for (const int64_t at : {4, 6}) {
        const Outcome resumed = train_in_stages(method, overrides, {{1, at}, {1, 9}});
        EXPECT_EQ(whole.losses, resumed.losses) << method << " at " << at;
        EXPECT_EQ(whole.parameters, resumed.parameters) << method << " at " << at;
      }
    }
}

TEST(Finetune, ResumingIsExactWhereLayersHaveChangedPlacesMeanwhile) {
  // Others in every step: by the ninth, layers have left, come back, and stand in other places.
  const char* const restless = "{method: owlore, active_layers: 2, interval: 1, rank: 8, refresh_every: 2}";
  const Outcome whole = train_in_stages(restless, {}, {{1, 14}});
  for (const int64_t at : {5, 7, 9, 10, 11, 12}) {
    const Outcome resumed = train_in_stages(restless, {}, {{1, at}, {1, 14}});
    EXPECT_EQ(whole.losses, resumed.losses) << at;
    EXPECT_EQ(whole.parameters, resumed.parameters) << at;
  }
}

TEST(Finetune, ARunGoesOnWithAnotherNumberOfRanks) {
  for (const char* method : {owlore, published}) {
    const Outcome whole = train_in_stages(method, {}, {{1, 8}}),
                  changed = train_in_stages(method, {}, {{2, 4}, {1, 8}});
    for (size_t i = 0; i < whole.losses.size(); ++i)
      EXPECT_NEAR(whole.losses[i], changed.losses[i], 5e-5) << method << " " << i;
  }
}

TEST(Finetune, WithEveryLayerAwakeThePublishedChoicesAreAnotherPlaceOfEpsAlone) {
  // One basis for the whole run, and an eps that is nothing beside either root.
  const Overrides small = {"optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3, eps: 1.0e-20}]"};
  const std::string all = "method: owlore, active_layers: 4, rank: 8, refresh_every: 100";
  const TinyResult ours = tiny_run(recipe_of("{" + all + ", basis: exact}", small)),
                   theirs = tiny_run(recipe_of("{" + all + ", reference: true}", small));
  EXPECT_EQ(ours.losses, theirs.losses);
  EXPECT_EQ(ours.parameters, theirs.parameters);
  const Overrides large = {"optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3, eps: 1.0e-3}]"};
  EXPECT_NE(tiny_run(recipe_of("{" + all + ", basis: exact}", large)).losses,
            tiny_run(recipe_of("{" + all + ", reference: true}", large)).losses);
}

TEST(Finetune, WithThePublishedChoicesStateSleepsWithItsLayer) {
  std::map<std::string, std::vector<double>> before;
  int asleep = 0, woken = 0;
  tiny_run(recipe_of(published, {"train.steps=12"}), 1, 1, 1 << 20, [&](Session& s, int64_t) {
    for (const Updater::Group& g : s.updater->groups())
      for (const ParamPiece& p : g.pieces) {
        const std::string name(p.name);
        if (name.find("attn.q") == std::string::npos) continue;
        const std::vector<double> now = test::read(p.state[0]);
        const bool empty = before[name].empty() || before[name] == std::vector<double>(now.size(), 0.0);
        if (p.grad.defined()) {
          EXPECT_NE(now, before[name]) << name;
          woken += !empty && p.since > 0;
        } else if (!before[name].empty()) {
          EXPECT_EQ(now, before[name]) << name;
          asleep += !empty;
        }
        before[name] = now;
      }
  });
  EXPECT_EQ(before.size(), 4u);
  EXPECT_GT(asleep, 0);
  EXPECT_GT(woken, 0);
}

TEST(Finetune, ThePublishedChoicesHoldStateOfAllLayersAndGradientsOfAFew) {
  const auto bytes = [](const std::string& method) {
    std::map<std::string, int64_t> all;
    for (const auto& c : plan_memory(recipe_of(method), 0, 1, 1, DeviceKind::cpu)) all[c.name] = c.bytes;
    return all;
  };
  auto few = bytes(owlore), kept = bytes(published), every = bytes("{method: galore, rank: 8}");
  EXPECT_EQ(kept["gradients"], few["gradients"]);
  EXPECT_EQ(kept["optimizer state"], every["optimizer state"]);
  EXPECT_EQ(kept["bases of subspaces"], every["bases of subspaces"]);
}

TEST(Finetune, TrainingStartsFromTheValuesOfADirectory) {
  const TempDir folder;
  const std::string path = model_directory(folder);
  const Recipe recipe = recipe_of("{method: full}", from_directory(path));
  EXPECT_EQ(recipe.model.layers, 4);
  ParamStore loaded;
  make_model(recipe.model, 32)->declare(loaded);
  loaded.materialize({}, DType::f32, ParamStore::Gradients::off);
  HubModel(path).load(Queue{}, loaded);
  size_t i = 0;
  tiny_run(recipe, 1, 1, 1 << 20, {}, DeviceKind::cpu, [&](Session& s) {
    for (const auto& p : s.params.all())
      EXPECT_EQ(test::read(p->value), test::read(loaded.all()[i++]->value)) << p->name;
    return std::unique_ptr<StepHook>();
  });
}

TEST(Finetune, WhatDoesNotFitIsRefused) {
  const auto said = [](const std::string& method, const Overrides& more = {}) {
    return test::refusal([&] { plan_memory(recipe_of(method, more), 0, 1, 1, DeviceKind::cpu); });
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  expect(said("{method: lisa, active_layers: 5}"), "5 layers cannot be active in a model of 4");
  expect(said("{method: owlore, active_layers: 2, rank: 33}"), "33 is more than the smaller side of");
  expect(said("{method: galore, rank: 8, targets: 'layers.*.q'}"), "matches no matrix of a layer");
  expect(said("{method: apollo, rank: 33}"), "33 is more than the smaller side of");
  expect(said("{method: apollo, rank: 8}",
              {"optim=[{match: '*norm*', kind: adamw, learning_rate: 1.0e-3}, {match: "
               "'layers.*', kind: muon, learning_rate: 1.0e-3}, {match: '*', kind: adamw, "
               "learning_rate: 1.0e-3}]"}),
         "is trained by finetune.method: apollo, which muon cannot");
  expect(said("{method: lora, rank: 4}"), "lora and dora adapt a model that is there");
  expect(said("{method: lisa}", {"model.norm=ssnorm"}), "knows neither ssnorm");
  expect(said("{method: galore, rank: 8}",
              {"optim=[{match: '*norm*', kind: adamw, learning_rate: 1.0e-3}, {match: "
               "'layers.*', kind: muon, learning_rate: 1.0e-3}, {match: '*', kind: adamw, "
               "learning_rate: 1.0e-3}]"}),
         "is trained in a subspace, which muon cannot");
  expect(said("{method: full}",
              {"train.precision=bf16", "train.master_weights=none",
               "optim=[{match: '*norm*', kind: adamw, learning_rate: 1.0e-3}, {match: 'layers.*', kind: "
               "muon, learning_rate: 1.0e-3}, {match: '*', kind: adamw, learning_rate: 1.0e-3}]"}),
         "muon needs fp32 masters");
}

}  // namespace
}  // namespace osprey
