#include "tests/support/finetune_run.h"

#include "framework/parallel/thread_comm.h"
#include "launch/checkpoints.h"

namespace osprey::test {

Recipe finetune_recipe(const std::string& method, Overrides more, int64_t ranks) {
  Overrides all = {"model.layers=4", "model.norm=rmsnorm", "model.embedding_projection=false",
                   "optim=[{match: '*', kind: adamw, learning_rate: 5.0e-3}]", "finetune=" + method};
  all.insert(all.end(), more.begin(), more.end());
  return tiny_recipe(all, ranks);
}

namespace {

struct Losses : StepHook {
  std::vector<double> all;
  void after_step(Trainer&, const StepResult& r) override { all.push_back(r.loss); }
};

}  // namespace

Outcome train_with_checkpoints(const Recipe& recipe, Communicator& world) {
  Session session(recipe, world, Queue{},
                  SessionMemory::of(plan_memory(recipe, world.rank(), world.size(), 1, DeviceKind::cpu)));
  session.initialize();
  SyntheticSource source(recipe.model.vocab_size, world.rank(), world.size(), 1 << 20);
  TrainerParts parts = session.parts();
  parts.train = &source;
  Trainer trainer(recipe.train, parts);
  const auto saver = make_checkpoint_hook(recipe, nullptr, trainer, session, {});
  const std::optional<int64_t> resumed = resume_run(*saver);
  Losses losses;
  trainer.add_hook(session.finetuning.get());
  trainer.add_hook(session.schemes.get());
  trainer.add_hook(&losses);
  trainer.add_hook(saver.get());
  trainer.run(resumed.value_or(0));
  Outcome out{losses.all, {}};
  for (const auto& p : session.params.all())
    out.parameters.push_back(p->stored_format ? Values() : read(p->value));
  return out;
}

Outcome train_in_stages(const std::string& method, Overrides overrides,
                        const std::vector<std::pair<int, int64_t>>& stages) {
  const TempDir folder;
  overrides.push_back("run.output_dir=" + folder.path().string());
  overrides.push_back("checkpoint.every_steps=null");
  Outcome all;
  for (const auto& [ranks, steps] : stages) {
    overrides.push_back(fmt::format("train.steps={}", steps));
    const Recipe recipe = finetune_recipe(method, overrides, ranks);
    Outcome one;
    if (ranks == 1) {
      one = train_with_checkpoints(recipe, *make_self_comm());
    } else {
      run_thread_ranks(ranks, [&](Communicator& world) {
        Outcome mine = train_with_checkpoints(recipe, world);
        if (world.rank() == 0) one = std::move(mine);
      });
    }
    all.losses.insert(all.losses.end(), one.losses.begin(), one.losses.end());
    all.parameters = one.parameters;
  }
  return all;
}

std::string model_directory(const TempDir& folder) {
  Overrides o = {"run.output_dir=" + folder.path().string(), "run.name=base", "checkpoint.every_steps=null"};
  train_with_checkpoints(finetune_recipe("{method: full}", o), *make_self_comm());
  return (folder.path() / "base" / "checkpoints" / "step-00000006").string();
}

Overrides from_directory(const std::string& path) {
  return {"model={path: " + path + "}", "train.precision=fp32"};
}

}  // namespace osprey::test
