// What learnt steps and frozen weights do in a run.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using test::tiny_recipe;
using test::tiny_run;
using test::Values;

/// Before the first step: looks at what linear layers of the unquantized model read of its batch, and
/// compares the steps of weights and inputs with it.
struct FirstSteps final : LinearInput, StepHook {
  FirstSteps(Session& s, double largest_input_, int learn_)
      : session(s), largest_input(largest_input_), learn(learn_) {}
  Tensor linear_input(Tape&, const std::string& weight, const Tensor& x) override {
    for (const double v : test::read(x)) sums[weight].first += std::abs(v), sums[weight].second += 1;
    return x;
  }
  void before_step(Trainer& trainer, int64_t) override {
    session.schemes->activate(5);  // the group has ended then
    session.tape.set_linear_input(this);
    trainer.look_at_batch(0);
    session.tape.set_linear_input(nullptr);
    session.schemes->activate(0);
    for (const auto& p : session.params.all()) {
      if (p->input_step) {
        std::array<double, 2> sum{sums.at(p->name).first, sums.at(p->name).second};
        session.world.sum(sum);
        expect_first(*p->input_step, 0, sum[0] / sum[1], largest_input);
        ++inputs;
      }
      if (!p->weight_step) continue;
      const Values w = test::read(p->value);
      const auto in = static_cast<size_t>(p->shape[1]);
      for (size_t r = 0; r < w.size() / in; ++r) {
        double sum = 0;
        for (size_t k = 0; k < in; ++k) sum += std::abs(w[r * in + k]);
        expect_first(*p->weight_step, r, sum / static_cast<double>(in), 7);
      }
      ++weights;
    }
    EXPECT_EQ(inputs, 8) << "q, o, gate and down of two layers";
    EXPECT_EQ(weights, learn);
  }
  static void expect_first(const Parameter& step, size_t i, double mean, double largest) {
    const double want = 2 * mean / std::sqrt(largest);
    EXPECT_NEAR(test::read(step.value)[i], want, 1e-5 * want) << step.name;
  }
  Session& session;
  double largest_input;  // code
  int learn;             // weights that learn a step
  std::map<std::string, std::pair<double, double>> sums;
  int inputs = 0, weights = 0;
};

TEST(LearntStepsOfARun, BeginAtTwiceTheMeanMagnitudeOfWeightsAndOfTheWholeBatch) {
  for (const int ranks : {1, 2}) {
    const Recipe recipe = tiny_recipe(
        {"quant=[{preset: lsq, end_step: 5, weights: {format: int4_row, scale: lsq}}]", "train.steps=1"},
        ranks);
    tiny_run(recipe, ranks, 1, 1 << 20, {}, test::test_device().kind,
             [](Session& s) { return std::make_unique<FirstSteps>(s, 7, 14); });
  }
}

TEST(LearntStepsOfARun, OfInputsAloneBeginBesideWeightsThatLearnNone) {
  const Recipe recipe = tiny_recipe(
      {"quant=[{weights: {format: int4_row, scale: stats}, activations: {format: int8_tensor, scale: lsq}, "
       "end_step: 5}]",
       "train.steps=1"});
  const test::TinyResult r = tiny_run(recipe, 1, 1, 1 << 20, {}, test::test_device().kind,
                                      [](Session& s) { return std::make_unique<FirstSteps>(s, 127, 0); });
  for (const double loss : r.losses) EXPECT_LT(loss, 6);
}

TEST(LearntStepsOfARun, MoveAndKeepTheLossFinite) {
  const Recipe recipe = tiny_recipe({"quant=[{preset: lsq}]", "train.steps=20"});
  std::map<std::string, Values> first, last;
  const test::TinyResult r = tiny_run(recipe, 1, 1, 4, [&](Session& s, int64_t step) {
    for (const auto& p : s.params.all())
      if (p->name.ends_with("_step")) (step == 1 ? first : last)[p->name] = test::read(p->value);
  });
  EXPECT_EQ(first.size(), 14u + 8u);
  for (const auto& [name, v] : first) EXPECT_NE(v, last[name]) << name;
  EXPECT_LT(r.losses.back(), r.losses.front() - 0.3);
}

TEST(FrozenWeights, StandStillWhereTheyAreCertainAndOnlyThere) {
  for (const char* precision : {"fp32", "bf16"})
    for (const int ranks : {1, 2}) {
      SCOPED_TRACE(fmt::format("{} {}", precision, ranks));
      // AdamW and Muon, with weight decay and momentum that would move what has no gradient.
      const Recipe recipe = tiny_recipe(
          {"quant=[{weights: {format: int4_row, scale: stats}, freeze: {first_step: 3, boundary: 0.1}}]",
           "train.steps=5", fmt::format("train.precision={}", precision),
           "optim=[{match: '*.attn.*.weight', kind: adamw, learning_rate: 1e-3, weight_decay: 0.1}, "
           "{match: '*.mlp.*.weight', kind: muon, learning_rate: 1e-3, weight_decay: 0.1}, "
           "{match: '*', kind: adamw, learning_rate: 1e-3}]"},
          ranks);
      std::map<int64_t, std::map<std::string, Values>> masters;
      double frozen = 0, elements = 0;
      tiny_run(recipe, ranks, 1, 1 << 20, [&](Session& s, int64_t step) {
        if (s.world.rank() != 0) return;
        for (const Updater::Group& g : s.updater->groups())
          for (const ParamPiece& p : g.pieces)
            masters[step][fmt::format("{} {}", p.name, p.begin)] = test::read(p.master);
        if (step == 4)
          for (const WeightFreezer::Count& c : s.freezer->counts())
            frozen += c.frozen, elements += c.elements;
        EXPECT_EQ(s.freezer->counts().empty(), step < 4);
      });
      double stood = 0, all = 0;
      for (const auto& [name, before] : masters[3]) {
        const Values& after = masters[4][name];
        const bool quantized =
            name.find("attn.") != std::string::npos || name.find("mlp.") != std::string::npos;
        double same = 0;
        for (size_t i = 0; i < before.size(); ++i) same += before[i] == after[i];
        if (quantized) stood += same, all += static_cast<double>(before.size());
        EXPECT_TRUE(!name.starts_with("head.") || same < 0.01 * static_cast<double>(before.size())) << name;
      }
      EXPECT_EQ(all, elements);
      EXPECT_NEAR(stood / all, frozen / elements, 0.002);
      EXPECT_NEAR(frozen / elements, 0.8, 0.03) << "a fifth of a step is nearer than 0.1 to its middle";
      double same = 0;
      for (const auto& [name, before] : masters[2])
        for (size_t i = 0; i < before.size(); ++i) same += before[i] == masters[3][name][i];
      EXPECT_LT(same / elements, 0.01) << "before they freeze";
    }
}

TEST(FrozenWeights, StandStillBesideRotationsThatAreMeasured) {
  const Recipe recipe = tiny_recipe(
      {"quant=[{weights: {format: mxfp4}, activations: {format: mxfp4}, gradients: {format: mxfp4, rounding: "
       "stochastic}, backward_rotation: 32, rotate: measured, calibration_steps: 2, freeze: {first_step: 3, "
       "boundary: 0.1}}]",
       "train.steps=5"});
  std::map<int64_t, std::map<std::string, double>> shares;
  tiny_run(recipe, 1, 1, 1 << 20, [&](Session& s, int64_t step) {
    for (const WeightFreezer::Count& c : s.freezer->counts()) shares[step][c.weight] = c.frozen / c.elements;
  });
  EXPECT_FALSE(shares.contains(3));
  ASSERT_EQ(shares[4].size(), 14u);
  for (const auto& [weight, share] : shares[4]) EXPECT_NEAR(share, 0.8, 0.1) << weight;
}

}  // namespace
}  // namespace osprey
