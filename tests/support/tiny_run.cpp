#include "tests/support/tiny_run.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "framework/parallel/thread_comm.h"
#include "kernels/core/random.h"
#include "tests/support/test_bed.h"

namespace osprey::test {

int64_t SyntheticSource::fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) {
  const int64_t rows = into.batch(), length = into.sequence();
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t global =
        (((step % distinct_steps_) * micro_steps + micro_step) * ranks_ + rank_) * rows + b;
    const uint64_t row = static_cast<uint64_t>(global);
    int64_t token = static_cast<int64_t>(random_u64(11, row, 0) % static_cast<uint64_t>(vocabulary_));
    const int64_t stride = 1 + static_cast<int64_t>(random_u64(11, row, 1) % 3);
    for (int64_t t = 0; t <= length; ++t) {
      const int64_t noise = random_u64(11, row, static_cast<uint64_t>(t + 2)) % 10 == 0 ? 5 : 0;
      if (t < length) {
        into.tokens.as<int32_t>()[b * length + t] = static_cast<int32_t>(token);
        into.positions.as<int32_t>()[b * length + t] = static_cast<int32_t>(t);
        if (into.document_start.defined()) into.document_start.as<int32_t>()[b * length + t] = 0;
      }
      if (t > 0) into.targets.as<int32_t>()[b * length + t - 1] = static_cast<int32_t>(token);
      token = (token + stride + noise) % vocabulary_;
    }
  }
  return into.targets.numel();
}

Recipe tiny_recipe(const std::vector<std::string>& overrides, int64_t ranks) {
  const char* text = R"(run: {name: tiny, seed: 3}
model: {layers: 2, hidden_size: 64, heads: 4, kv_heads: 2, ffn_size: 96, vocab_size: 96, norm: ssnorm, embedding_projection: true}
data: {tokenizer: bytes, train: [{path: none}], sequence_len: 32}
optim:
  - {match: "*norm*.weight", kind: adamw, learning_rate: 5.0e-3}
  - {match: "*.{attn,mlp}.*.weight", kind: muon, learning_rate: 5.0e-3, weight_decay: 0.01}
  - {match: "*_projection.weight", kind: muon, learning_rate: 5.0e-3, weight_decay: 0.01}
  - {match: "*", kind: adamw, learning_rate: 5.0e-3}
schedule: {kind: constant}
train: {steps: 6, global_batch_tokens: 256, micro_batch_size: 2, precision: fp32}
)";
  const auto path = std::filesystem::temp_directory_path() /
                    fmt::format("osprey-tiny-{}-{}.yaml", getpid(),
                                std::hash<std::thread::id>()(std::this_thread::get_id()));
  std::ofstream(path) << text;
  const Recipe recipe = load_recipe(path.string(), overrides, ranks);
  std::filesystem::remove(path);
  return recipe;
}

namespace {

struct Collect : StepHook {
  explicit Collect(TinyResult& r, Session& s, const std::function<void(Session&, int64_t)>& f)
      : result(r), session(s), on_step(f) {}
  void after_step(Trainer&, const StepResult& r) override {
    result.losses.push_back(r.loss);
    result.grad_norms.push_back(r.grad_norm);
    if (on_step) on_step(session, r.step);
  }
  TinyResult& result;
  Session& session;
  const std::function<void(Session&, int64_t)>& on_step;
};

TinyResult run_rank(const Recipe& recipe, Communicator& world, int threads, int64_t distinct_steps,
                    const std::function<void(Session&, int64_t)>& on_step, DeviceKind kind,
                    const std::function<std::unique_ptr<StepHook>(Session&)>& hook) {
  const kernels::OpenQueue open =
      kernels::open_queue({kind, kind == DeviceKind::cuda ? world.local_rank() : 0}, threads);
  Session session(recipe, world, open.queue,
                  SessionMemory::of(plan_memory(recipe, world.rank(), world.size(), threads, kind)));
  session.initialize();
  SyntheticSource source(recipe.model.vocab_size, world.rank(), world.size(), distinct_steps);
  TrainerParts parts = session.parts();
  parts.train = &source;
  Trainer trainer(recipe.train, parts);
  TinyResult result;
  Collect collect(result, session, on_step);
  trainer.add_hook(session.finetuning.get());
  trainer.add_hook(session.schemes.get());
  trainer.add_hook(&collect);
  const std::unique_ptr<StepHook> last = hook ? hook(session) : nullptr;
  if (last) trainer.add_hook(last.get());
  trainer.run(0);
  for (const auto& p : session.params.all())
    result.parameters.push_back(p->stored_format ? Values() : read(p->value));
  result.memory = session.memory(&trainer);
  result.replayed_steps = trainer.replayed_steps();
  return result;
}

}  // namespace

TinyResult tiny_run(const Recipe& recipe, int ranks, int threads, int64_t distinct_steps,
                    const std::function<void(Session&, int64_t)>& on_step, DeviceKind kind,
                    const std::function<std::unique_ptr<StepHook>(Session&)>& hook) {
  if (ranks == 1) return run_rank(recipe, *make_self_comm(), threads, distinct_steps, on_step, kind, hook);
  std::vector<TinyResult> results(static_cast<size_t>(ranks));
  run_thread_ranks(ranks, [&](Communicator& world) {
    results[static_cast<size_t>(world.rank())] =
        run_rank(recipe, world, threads, distinct_steps, on_step, kind, hook);
  });
  return results[0];
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) d = std::max(d, std::abs(a[i] - b[i]));
  return d;
}

}  // namespace osprey::test
