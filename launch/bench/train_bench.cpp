#include "launch/bench/train_bench.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>

#include "framework/telemetry/gemm_rate.h"
#include "kernels/pointwise.h"
#include "kernels/sum_of_squares.h"
#include "launch/bench/allocations.h"
#include "launch/bench/measure.h"
#include "models/llama/llama.h"
#include "optim/groups.h"

namespace osprey::bench {

namespace {

constexpr int64_t sequence = 512, micro_batch = 8, tokens = sequence * micro_batch;

/// Seconds by op and direction. The names are literals, compared by address: no allocation.
class OpTimes final : public Profiler {
 public:
  struct Row {
    const char* op;
    double forward = 0, backward = 0;
  };
  void start() { last_ = now_s(); }
  void forward(const char* op) override { add(op, &Row::forward); }
  void backward(const char* op) override { add(op, &Row::backward); }
  const std::vector<Row>& rows() const { return rows_; }
  OpTimes() { rows_.reserve(64); }

 private:
  void add(const char* op, double Row::*direction) {
    const double now = now_s();
    Row* row = nullptr;
    for (Row& r : rows_)
      if (std::strcmp(r.op, op) == 0) row = &r;
    if (!row) row = &rows_.emplace_back(Row{op});
    row->*direction += now - last_;
    last_ = now;
  }
  double last_ = 0;
  std::vector<Row> rows_;
};

std::vector<OptimizerGroupSpec> optimizer_groups(BenchOptimizer kind) {
  std::vector<OptimizerGroupSpec> groups;
  if (kind == BenchOptimizer::muon) {
    OptimizerGroupSpec muon;
    muon.match = "*.{attn,mlp}.*.weight";
    muon.kind = OptimizerGroupSpec::Kind::muon;
    muon.learning_rate = 1e-3;
    groups.push_back(muon);
  }
  OptimizerGroupSpec adamw;
  adamw.learning_rate = 1e-3;
  groups.push_back(adamw);
  return groups;
}

/// Everything a step works with.
class BenchRun {
 public:
  BenchRun(const Queue& queue, BenchOptimizer kind);
  void step(int64_t index);

  OpTimes times;
  double optimizer_seconds = 0;  // of the last step
  double flops_per_step() const { return model_->flops_per_token(sequence) * static_cast<double>(tokens); }
  int64_t parameters() const { return params_.numel(); }

 private:
  struct Group {
    const Optimizer* optimizer;
    std::vector<ParamPiece> pieces;
  };
  void make_pieces();
  void make_batch();

  Queue queue_;
  std::unique_ptr<LanguageModel> model_;
  ParamStore params_;
  Arena activations_, state_, batch_memory_;
  Pool pool_;
  Tape tape_;
  std::unique_ptr<OptimizerGroups> optimizers_;
  std::vector<Group> groups_;
  Tensor workspace_, control_;
  std::vector<Tensor> gradients_;
  BatchView batch_;
};

BenchRun::BenchRun(const Queue& queue, BenchOptimizer kind)
    : queue_(queue),
      model_(make_llama(ModelSpec{}, sequence)),
      activations_("activations", queue.device, int64_t{4} << 30),
      state_("optimizer state", queue.device, int64_t{2} << 30),
      batch_memory_("batch", queue.device, 1 << 20),
      pool_("activation gradients", queue.device),
      tape_(queue, activations_, pool_) {
  model_->declare(params_);
  params_.materialize(queue.device, DType::bf16, ParamStore::Gradients::on);
  params_.initialize(queue, 1);
  optimizers_ = std::make_unique<OptimizerGroups>(optimizer_groups(kind), params_);
  make_pieces();
  make_batch();
  tape_.set_mode(Tape::Mode::train);
  tape_.set_profiler(&times);
}

void BenchRun::make_pieces() {
  int64_t workspace_bytes = 0;
  for (const auto& p : params_.all()) {
    const Optimizer& optimizer = optimizers_->of(*p);
    auto group = std::find_if(groups_.begin(), groups_.end(),
                              [&](const Group& g) { return g.optimizer == &optimizer; });
    if (group == groups_.end()) group = groups_.insert(groups_.end(), Group{&optimizer, {}});
    const Shape shape = optimizer.granularity() == Granularity::matrix ? p->shape : Shape{p->shape.numel()};
    ParamPiece piece{.name = p->name, .full_shape = p->shape, .end = p->shape.numel()};
    piece.value = p->value.view(shape);
    piece.grad = p->grad.view(shape);
    piece.master = state_.alloc(shape, DType::f32);
    write_from_host(queue_, piece.master, [&](const Tensor& host) {
      ParamStore::initial_value(queue_, *p, 1, host.as<float>());
    });
    size_t i = 0;
    for (const StateSpec& s : optimizer.states()) {
      piece.state[i] = state_.alloc(shape, s.dtype);
      kernels::fill_bytes(queue_, piece.state[i], 0);
      ++i;
    }
    group->pieces.push_back(piece);
  }
  for (Group& g : groups_) {
    std::stable_sort(g.pieces.begin(), g.pieces.end(), [](const ParamPiece& a, const ParamPiece& b) {
      return a.full_shape.dims < b.full_shape.dims;  // equal shapes stand together
    });
    workspace_bytes = std::max(workspace_bytes, g.optimizer->workspace_bytes(queue_, g.pieces));
  }
  workspace_ = state_.alloc({workspace_bytes / 4 + 16}, DType::f32);
  control_ = state_.alloc({kernels::step_scalars}, DType::f64);
  for (const Bucket& b : params_.buckets()) gradients_.push_back(b.grads);
}

void BenchRun::make_batch() {
  for (Tensor* t : {&batch_.tokens, &batch_.targets, &batch_.positions})
    *t = batch_memory_.alloc({micro_batch, sequence}, DType::i32);
  const auto vocabulary = static_cast<uint64_t>(model_->vocabulary());
  const auto write = [&](const Tensor& t, const auto& value) {
    write_from_host(queue_, t, [&](const Tensor& host) {
      for (int64_t i = 0; i < tokens; ++i) host.as<int32_t>()[i] = static_cast<int32_t>(value(i));
    });
  };
  const auto draw = [&](uint64_t stream) {
    return [=](int64_t i) { return random_u64(1, stream, static_cast<uint64_t>(i)) % vocabulary; };
  };
  write(batch_.tokens, draw(1));
  write(batch_.targets, draw(2));
  write(batch_.positions, [](int64_t i) { return i % sequence; });
}

void BenchRun::step(int64_t index) {
  params_.begin_step();
  times.start();
  using namespace kernels;
  const auto scalar = [&](int at, int count) { return control_.columns(at, at + count).view({count}); };
  double control[step_scalars] = {};
  control[step_loss_scale] = 1.0 / static_cast<double>(tokens);
  control[step_learning_rate_factor] = 1;
  control[step_number] = static_cast<double>(index);
  upload(queue_, control_, control);
  tape_.backward(
      model_->loss(tape_, batch_, {.grad_scale = scalar(step_loss_scale, 1), .sums = scalar(step_loss, 2)}));
  sum_of_squares(queue_, {.xs = gradients_, .sum = scalar(step_sum_of_squares, 1)});
  decide_step(queue_, {.control = control_, .max_grad_norm = 1.0});
  times.forward("gradient norm");
  const double start = now_s();
  for (const Group& g : groups_)
    g.optimizer->step(queue_, g.pieces, {.control = control_, .seed = 1, .workspace = workspace_});
  download(queue_, control, control_);
  require(control[step_apply] == 1, "bench", "the gradient is not finite");
  for (const auto& p : params_.all()) ++p->version;
  optimizer_seconds = now_s() - start;
  times.forward("optimizer");
  tape_.reset();
}

void print_profile(const OpTimes& before, const OpTimes& after, double steps, double step_ms) {
  fmt::print("\n  {:<16}{:>12}{:>13}{:>9}\n", "op", "forward ms", "backward ms", "share");
  double all = 0;
  for (const OpTimes::Row& r : after.rows()) {
    OpTimes::Row first{r.op};
    for (const OpTimes::Row& b : before.rows())
      if (std::strcmp(b.op, r.op) == 0) first = b;
    const double forward = (r.forward - first.forward) / steps * 1e3,
                 backward = (r.backward - first.backward) / steps * 1e3;
    if (forward + backward < 0.05) continue;
    all += forward + backward;
    fmt::print("  {:<16}{:>12.1f}{:>13.1f}{:>8.1f}%\n", r.op, forward, backward,
               100 * (forward + backward) / step_ms);
  }
  fmt::print("  {:<16}{:>25.1f}\n", "together", all);
}

}  // namespace

TrainBenchResult bench_train(const TrainBenchOptions& options) {
  const Queue& queue = options.queue;
  BenchRun run(queue, options.optimizer);
  GemmYardstick yardstick(queue);
  run.step(0);
  run.step(1);  // the optimizer's and the packs' first use are over after this
  const OpTimes warm = run.times;
  std::vector<double> seconds, rates, optimizer;
  seconds.reserve(static_cast<size_t>(options.steps));
  rates.reserve(static_cast<size_t>(2 * options.steps));
  optimizer.reserve(static_cast<size_t>(options.steps));
  TrainBenchResult result;
  for (int64_t i = 0; i < options.steps; ++i) {
    rates.push_back(yardstick.sample());
    const int64_t before = allocations();
    const double start = now_s();
    run.step(i + 2);
    seconds.push_back(now_s() - start);
    result.allocations += allocations() - before;
    optimizer.push_back(run.optimizer_seconds);
    rates.push_back(yardstick.sample());
  }
  const double step = median(seconds);
  result.step_ms = step * 1e3;
  result.optimizer_ms = median(optimizer) * 1e3;
  result.tokens_per_second = static_cast<double>(tokens) / step;
  result.flops = run.flops_per_step() / step;
  result.gemm_flops = median(rates);

  const bool adamw = options.optimizer == BenchOptimizer::adamw;
  fmt::print(
      "bench train: llama, 8 layers, width 512, 8 heads, ffn 1408, vocabulary 8192 ({} parameters), T 512, "
      "micro "
      "batch 8, bf16, {}, {} thread{}\n",
      run.parameters(), adamw ? "adamw" : "muon + adamw", options.queue.threads, options.queue.threads == 1 ? "" : "s");
  fmt::print("  step                {:>9.1f} ms   median of {}, one micro batch of {} tokens\n",
             result.step_ms, options.steps, tokens);
  fmt::print("  tokens/s            {:>9.0f}\n", result.tokens_per_second);
  fmt::print(
      "  training            {:>9.1f} GFLOP/s   6 N (head included, embedding not) + 6 L T C of causal "
      "attention\n",
      result.flops / 1e9);
  fmt::print("  oneDNN bf16 GEMM    {:>9.1f} GFLOP/s   2048 x 2048 x 2048, median, measured in turn\n",
             result.gemm_flops / 1e9);
  fmt::print("  fraction            {:>9.3f}\n", result.fraction());
  fmt::print("  optimizer           {:>9.1f} ms   {:.2f}% of a step of 131072 tokens\n", result.optimizer_ms,
             100 * result.optimizer_ms / (32 * (result.step_ms - result.optimizer_ms) + result.optimizer_ms));
  fmt::print("  heap allocations    {:>9}   operator new, in {} steps after the first two\n",
             result.allocations, options.steps);
  print_profile(warm, run.times, static_cast<double>(options.steps), result.step_ms);
  std::fflush(stdout);
  return result;
}

}  // namespace osprey::bench
