#include "launch/bench/train_bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>

#include "framework/config/reader.h"
#include "framework/telemetry/gemm_rate.h"
#include "kernels/device.h"
#include "launch/bench/allocations.h"
#include "launch/bench/measure.h"
#include "launch/session.h"

namespace osprey::bench {

namespace {

/// Seconds by op and direction, on the device. The names are literals, compared by address where they can be.
class OpTimes final : public Profiler {
 public:
  struct Row {
    const char* op;
    double forward = 0, backward = 0;
  };
  explicit OpTimes(const Queue& queue) : queue_(queue), timeline_(queue.device) {
    rows_.reserve(64);
    marks_.reserve(1 << 16);
  }
  void start() { timeline_.mark(queue_); }
  void forward(const char* op) override { add(op, &Row::forward); }
  void backward(const char* op) override { add(op, &Row::backward); }
  void other(const char* what) override { add(what, &Row::forward); }
  /// Adds what was seen since start() to the rows.
  void collect() {
    const std::vector<double> seconds = timeline_.take_seconds();
    for (size_t i = 0; i < marks_.size(); ++i)
      row(marks_[i].op).*marks_[i].direction += seconds[i + 1] - seconds[i];
    marks_.clear();
    ++steps_;
  }
  const std::vector<Row>& rows() const { return rows_; }
  double ms_a_step(const char* op) {
    return (row(op).forward + row(op).backward) / std::max<double>(1, steps_) * 1e3;
  }
  double steps() const { return steps_; }

 private:
  struct Mark {
    const char* op;
    double Row::*direction;
  };
  Row& row(const char* op) {
    for (Row& r : rows_)
      if (std::strcmp(r.op, op) == 0) return r;
    return rows_.emplace_back(Row{op});
  }
  void add(const char* op, double Row::*direction) {
    timeline_.mark(queue_);
    marks_.push_back({op, direction});
  }
  Queue queue_;
  kernels::Timeline timeline_;
  std::vector<Mark> marks_;
  std::vector<Row> rows_;
  double steps_ = 0;
};

/// Random tokens, the same in every step.
class RandomTokens final : public BatchSource {
 public:
  explicit RandomTokens(int64_t vocabulary) : vocabulary_(static_cast<uint64_t>(vocabulary)) {}
  int64_t fill(int64_t, int64_t, int64_t, const BatchView& into) override {
    for (int64_t i = 0; i < into.tokens.numel(); ++i) {
      into.tokens.as<int32_t>()[i] = draw(1, i);
      into.targets.as<int32_t>()[i] = draw(2, i);
      into.positions.as<int32_t>()[i] = static_cast<int32_t>(i % into.sequence());
    }
    return into.targets.numel();
  }

 private:
  int32_t draw(uint64_t stream, int64_t i) const {
    return static_cast<int32_t>(random_u64(1, stream, static_cast<uint64_t>(i)) % vocabulary_);
  }
  uint64_t vocabulary_;
};

struct BenchModelInfo {
  ModelSpec spec;
  int64_t sequence, micro_batch;
  const char* words;
};

BenchModelInfo model_of(BenchModel model) {
  ModelSpec s;
  switch (model) {
    case BenchModel::llama_34m:
      return {s, 512, 8, "llama, 8 layers, width 512, 8 heads, ffn 1408, vocabulary 8192"};
    case BenchModel::gpt2_124m:
      s.layers = 12, s.hidden_size = 768, s.heads = 12, s.ffn_size = 2048, s.vocab_size = 50304;
      s.tie_embeddings = true;
      return {s, 2048, 16,
              "llama of GPT-2's size, 12 layers, width 768, 12 heads, ffn 2048, vocabulary 50304, tied"};
    case BenchModel::osp_1b4:
      s.layers = 24, s.hidden_size = 2048, s.heads = 16, s.ffn_size = 5504, s.vocab_size = 49152;
      s.norm = NormKind::ssnorm;
      s.embedding_projection = true;
      return {s, 2048, 8, "OSP 1.4B, 24 layers, width 2048, 16 heads, ffn 5504, vocabulary 49152"};
  }
  fail("bench", "no such model");
}

Recipe recipe_of(const BenchModelInfo& model, const TrainBenchOptions& options) {
  Recipe recipe;
  recipe.model = model.spec;
  recipe.data.sequence_len = model.sequence;
  if (options.optimizer == BenchOptimizer::muon) {
    OptimizerGroupSpec muon;
    muon.match = "*.{attn,mlp}.*.weight";
    muon.kind = OptimizerGroupSpec::Kind::muon;
    muon.learning_rate = 1e-3;
    recipe.optim.push_back(muon);
  }
  OptimizerGroupSpec adamw;
  adamw.learning_rate = 1e-3;
  recipe.optim.push_back(adamw);
  recipe.schedule.kind = ScheduleSpec::Kind::constant;
  recipe.train.steps = 1000000;
  recipe.train.micro_batch_size = options.micro_batch.value_or(model.micro_batch);
  recipe.train.global_batch_tokens = recipe.train.micro_batch_size * model.sequence;
  recipe.train.recompute = options.recompute;
  recipe.checkpoint.save_final = false;
  if (options.quant != "none") {
    recipe.quant.push_back(read_spec<QuantGroupSpec>(fmt::format("preset: {}", options.quant), "--quant"));
    recipe.quant.back().calibration_steps = 1;  // of a preset that measures
  }
  return recipe;
}

/// What a step costs when `micro` micro batches of a step share one optimizer step.
double optimizer_share(double optimizer_ms, double step_ms, double micro) {
  return 100 * optimizer_ms / (micro * (step_ms - optimizer_ms) + optimizer_ms);
}

void print_profile(OpTimes& times, double step_ms) {
  fmt::print("\n  {:<16}{:>12}{:>13}{:>9}\n", "op", "forward ms", "backward ms", "share");
  double all = 0;
  for (const OpTimes::Row& r : times.rows()) {
    const double forward = r.forward / times.steps() * 1e3, backward = r.backward / times.steps() * 1e3;
    if (forward + backward < 0.0005 * step_ms) continue;
    all += forward + backward;
    fmt::print("  {:<16}{:>12.2f}{:>13.2f}{:>8.1f}%\n", r.op, forward, backward,
               100 * (forward + backward) / step_ms);
  }
  fmt::print("  {:<16}{:>25.2f}\n", "together", all);
}

}  // namespace

TrainBenchResult bench_train(const TrainBenchOptions& options) {
  const Queue& queue = options.queue;
  const bool gpu = queue.device.kind == DeviceKind::cuda;
  const BenchModelInfo model = model_of(options.model);
  const Recipe recipe = recipe_of(model, options);
  const auto world = make_self_comm();
  Session session(recipe, *world, queue,
                  SessionMemory::of(plan_memory(recipe, 0, 1, queue.threads, queue.device.kind)));
  session.initialize();
  RandomTokens tokens(model.spec.vocab_size);
  TrainerParts parts = session.parts();
  parts.train = &tokens;
  Trainer trainer(recipe.train, parts);
  GemmYardstick yardstick(queue);
  OpTimes times(queue);
  const auto profiled_step = [&](int64_t step) {
    session.tape.set_profiler(&times);
    times.start();
    trainer.step(step);
    session.tape.set_profiler(nullptr);
  };
  // First uses of buffers, packs and algorithms; on a GPU also the recording of a step.
  const int64_t first = session.schemes->changes().back() + 4;
  int64_t step_index = 0;
  for (; step_index < first; ++step_index) {
    session.schemes->before_step(trainer, step_index);
    trainer.step(step_index);
  }
  TrainBenchResult result;
  std::vector<double> seconds, rates;
  seconds.reserve(static_cast<size_t>(options.steps));
  rates.reserve(static_cast<size_t>(2 * options.steps));
  for (int64_t i = 0; i < options.steps; ++i) {
    rates.push_back(yardstick.sample());
    const int64_t before = allocations();
    const double start = now_s();
    // A GPU replays its step, and a replay has no ops to profile.
    gpu ? (void)trainer.step(step_index++) : profiled_step(step_index++);
    seconds.push_back(now_s() - start);
    result.allocations += allocations() - before;
    if (!gpu) times.collect();
    rates.push_back(yardstick.sample());
  }
  for (int i = 0; gpu && i < 4; ++i) {
    profiled_step(step_index++);
    times.collect();
  }
  const double step = median(seconds), step_tokens = static_cast<double>(recipe.train.global_batch_tokens);
  result.step_ms = step * 1e3;
  result.optimizer_ms = times.ms_a_step("optimizer");
  result.tokens_per_second = step_tokens / step;
  result.flops = session.model->flops_per_token(model.sequence) * step_tokens / step;
  result.gemm_flops = median(rates);
  result.micro_batches = (gpu ? 524288.0 : 131072.0) / step_tokens;

  fmt::print("bench train: {} ({} parameters), T {}, micro batch {}, bf16{}, {}, {}\n", model.words,
             session.params.numel(), model.sequence, recipe.train.micro_batch_size,
             options.quant == "none" ? "" : " and " + options.quant,
             options.optimizer == BenchOptimizer::adamw ? "adamw" : "muon + adamw",
             gpu ? kernels::gpu_info(queue.device.index).name
                 : fmt::format("{} thread{}", queue.threads, queue.threads == 1 ? "" : "s"));
  fmt::print("  step                {:>9.2f} ms   median of {}, one micro batch of {} tokens{}\n",
             result.step_ms, options.steps, step_tokens,
             gpu ? fmt::format(", {} replayed", trainer.replayed_steps()) : "");
  fmt::print("  tokens/s            {:>9.0f}\n", result.tokens_per_second);
  fmt::print(
      "  training            {:>9.1f} GFLOP/s   6 N (head included, embedding not) + 6 L T C of causal "
      "attention\n",
      result.flops / 1e9);
  fmt::print("  {:<20}{:>9.1f} GFLOP/s   {} x {} x {}, median, measured in turn\n",
             gpu ? "cuBLASLt bf16 GEMM" : "oneDNN bf16 GEMM", result.gemm_flops / 1e9, yardstick.side,
             yardstick.side, yardstick.side);
  fmt::print("  fraction            {:>9.3f}\n", result.fraction());
  fmt::print("  optimizer           {:>9.2f} ms   {:.2f}% of a step of {:.0f} tokens\n", result.optimizer_ms,
             optimizer_share(result.optimizer_ms, result.step_ms, result.micro_batches),
             result.micro_batches * step_tokens);
  fmt::print("  heap allocations    {:>9}   operator new, in {} steps after the first four\n",
             result.allocations, options.steps);
  print_profile(times, result.step_ms);
  std::fflush(stdout);
  return result;
}

}  // namespace osprey::bench
