// Layers that are updated while backward goes on, against updates after it.

#include <gtest/gtest.h>

#include <limits>

#include "kernels/device.h"
#include "kernels/step_control.h"
#include "optim/adamw.h"
#include "tests/support/tiny_run.h"

namespace osprey {
namespace {

using test::tiny_run;
using test::TinyResult;
using Overrides = std::vector<std::string>;

/// One micro batch a step, no clipping, and tables of more rows than a block has.
Recipe recipe_of(const std::string& method, const Overrides& more = {}) {
  Overrides all = {"model.layers=4",
                   "model.norm=rmsnorm",
                   "model.embedding_projection=false",
                   "model.vocab_size=600",
                   "train.micro_batch_size=8",
                   "train.max_grad_norm=null",
                   "train.steps=8",
                   "optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3}]",
                   "finetune=" + method};
  all.insert(all.end(), more.begin(), more.end());
  return test::tiny_recipe(all);
}

const char* const in_backward = "train.updates=in_backward";

/// With 256 rows of a table at a time where the recipe takes them by rows: large tables have many blocks.
TinyResult run(const Recipe& recipe) {
  return tiny_run(recipe, 1, 1, 4, {}, test::test_device().kind, [](Session& s) {
    for (const auto& p : s.params.all())
      if (p->row_gradient.defined()) p->row_gradient = p->row_gradient.row_range(0, 256);
    return std::unique_ptr<StepHook>();
  });
}

int64_t bytes_of(const TinyResult& r, const std::string& category) {
  for (const MemoryCategory& c : r.memory)
    if (c.name == category) return c.bytes;
  ADD_FAILURE() << "no " << category;
  return 0;
}

void expect_alike(const Recipe& after, const Recipe& within, double losses, double parameters) {
  const TinyResult a = run(after), b = run(within);
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t i = 0; i < a.losses.size(); ++i) {
    EXPECT_NEAR(a.losses[i], b.losses[i], losses) << i;
    EXPECT_NEAR(a.grad_norms[i], b.grad_norms[i], 0.01 * a.grad_norms[i]) << i;
  }
  for (size_t i = 0; i < a.parameters.size(); ++i)
    EXPECT_LT(test::largest_difference(a.parameters[i], b.parameters[i]), parameters) << i;
}

TEST(UpdatesInBackward, AreThoseAfterBackwardWithEveryMethod) {
  for (const char* method : {"{method: full}", "{method: lisa, active_layers: 2, interval: 3}",
                             "{method: galore, rank: 8, refresh_every: 3}",
                             "{method: owlore, active_layers: 2, interval: 3, rank: 8, refresh_every: 2}",
                             "{method: owlore, active_layers: 2, interval: 3, rank: 8, reference: true}",
                             "{method: badam, interval: 3}", "{method: apollo, rank: 8, refresh_every: 3}"}) {
    SCOPED_TRACE(method);
    // Sums over tokens are cut otherwise; Adam's first steps make a sign of a gradient near zero.
    expect_alike(recipe_of(method), recipe_of(method, {in_backward}), 2e-5, 2e-3);
  }
}

TEST(UpdatesInBackward, AreThoseAfterBackwardWhereTablesAreTiedProjectedOrMuons) {
  const char* full = "{method: full}";
  for (const Overrides& model :
       {Overrides{"model.tie_embeddings=true"},
        Overrides{"model.norm=ssnorm", "model.embedding_projection=true"},
        Overrides{
            "optim=[{match: '*norm*.weight', kind: adamw, learning_rate: 5.0e-3}, {match: '*', kind: muon, "
            "learning_rate: 5.0e-3}]"},
        Overrides{"train.recompute=block"},
        Overrides{"model={family: gpt, layers: 4, hidden_size: 64, heads: 4, ffn_size: 96, vocab_size: 600, "
                  "max_positions: 300}"}}) {
    SCOPED_TRACE(model.front());
    Overrides within = model;
    within.push_back(in_backward);
    expect_alike(recipe_of(full, model), recipe_of(full, within), 5e-5, 5e-3);
  }
}

TEST(UpdatesInBackward, LearnInBf16WithSmallMoments) {
  const Overrides small = {in_backward, "train.precision=bf16", "train.master_weights=none", "train.steps=40",
                           "optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3, moments: int8}]"};
  for (const char* method : {"{method: full}", "{method: owlore, active_layers: 2, interval: 3, rank: 8}"}) {
    const TinyResult r = run(recipe_of(method, small));
    EXPECT_LT(r.losses.back(), r.losses.front() - 0.3) << method;
  }
}

TEST(UpdatesInBackward, HoldTheGradientsOfOneLayerAndWhatThePlanSays) {
  for (const char* method : {"{method: full}", "{method: lisa, active_layers: 2, interval: 3}"}) {
    const Recipe within = recipe_of(method, {in_backward});
    const TinyResult a = tiny_run(recipe_of(method)), b = tiny_run(within);
    // Rows of the largest table, a layer, and what stands outside of both.
    const int64_t table = 600 * 64 * 4, layer = (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64) * 4;
    EXPECT_LE(bytes_of(b, "gradients"), table + layer + 4096) << method;
    EXPECT_GE(bytes_of(a, "gradients"), 2 * table + 2 * layer) << method;
    for (const MemoryCategory& c : plan_memory(within, 0, 1, 1, test::test_device().kind))
      if (c.name == "gradients" || c.name == "activations" || c.name == "optimizer state") {
        EXPECT_NEAR(static_cast<double>(bytes_of(b, c.name)), static_cast<double>(c.bytes),
                    0.05 * static_cast<double>(c.bytes))
            << c.name;
      }
  }
}

TEST(UpdatesInBackward, StopWhereAGradientIsNotFinite) {
  const Recipe recipe = recipe_of("{method: full}", {in_backward});
  const kernels::OpenQueue open = kernels::open_queue(test::test_device(), 1);
  Session session(recipe, *make_self_comm(), open.queue,
                  SessionMemory::of(plan_memory(recipe, 0, 1, 1, test::test_device().kind)));
  session.initialize();
  Arena scalars("scalars", open.queue.device, 4096);
  const Tensor control = scalars.alloc({kernels::step_scalars}, DType::f64);
  std::vector<double> values(kernels::step_scalars, 0.0);
  values[kernels::step_loss] = values[kernels::step_loss_scale] = values[kernels::step_learning_rate_factor] =
      1;
  kernels::upload(open.queue, control, values.data());
  UpdatesInBackward updates(open.queue, session.params, *session.updater, control, 1);
  const auto whole = [&](int layer) {
    std::vector<double> all;
    for (const Parameter* p : session.params.bucket(layer).params)
      for (const double v : test::read(p->value)) all.push_back(v);
    return all;
  };
  const auto finished = [&](int layer, float gradient) {
    for (Parameter* p : session.params.bucket(layer).params) {
      p->grad_written = true;
      const std::vector<float> all(static_cast<size_t>(p->shape.numel()), gradient);
      kernels::upload(open.queue, p->grad, all.data());
    }
    const auto before = whole(layer);
    updates.after_backward(layer);
    return whole(layer) != before;
  };
  EXPECT_TRUE(finished(3, 0.5f));
  EXPECT_FALSE(finished(2, std::numeric_limits<float>::quiet_NaN()));
  EXPECT_FALSE(finished(1, 0.5f)) << "what backward comes to after it";
  kernels::download(open.queue, values.data(), control);
  EXPECT_EQ(values[kernels::step_apply], 0);
}

}  // namespace
}  // namespace osprey
