#include "framework/telemetry/run_watch.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/random.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// A model whose activations are random numbers of the token's value: enough for the tap.
class TappedModel final : public LanguageModel {
 public:
  void declare(ParamStore&) override {}
  Var hidden(Tape& t, const BatchView& batch) override {
    shapes.push_back(batch.tokens.shape);
    const int64_t n = batch.tokens.numel();
    const Tensor x = t.alloc({n, 16}, DType::f32);
    for (int64_t i = 0; i < n * 16; ++i)
      x.as<float>()[i] = random_normal(1, static_cast<uint64_t>(batch.tokens.as<int32_t>()[i / 16]),
                                       static_cast<uint64_t>(i % 16));
    for (int64_t i = 0; i < n; ++i)
      all_positions_zero = all_positions_zero && batch.positions.as<int32_t>()[i] == 0;
    t.observe("block_input", x);
    t.observe("final_hidden", x);
    return t.input(x);
  }
  Var loss(Tape&, const BatchView&, const LossArgs&) override { return {}; }
  Tensor decode(Tape&, const Tensor&, const Tensor&, DecodeCache&) override { return {}; }
  DecodeCache make_cache(Arena&, int64_t, int64_t) override { return {}; }
  double flops_per_token(int64_t) const override { return 1e6; }
  int64_t vocabulary() const override { return 8; }

  std::vector<Shape> shapes;
  bool all_positions_zero = true;
};

/// A trainer that never runs: its hooks are called by the tests.
struct Bench {
  test::TempDir dir;
  Queue queue;
  std::unique_ptr<Communicator> world = make_self_comm();
  Arena arena{"activations", Device{}, 1 << 20};
  Pool pool{"gradients", Device{}};
  Tape tape{queue, arena, pool};
  ParamStore params;
  TappedModel model;
  ShardPlan plan;  // of nothing
  std::unique_ptr<Trainer> trainer;
  int quiet[2];

  Bench() {
    TrainSpec spec;
    spec.steps = 4;
    spec.global_batch_tokens = 32;
    spec.micro_batch_size = 2;
    TrainerParts parts;
    parts.queue = queue, parts.model = &model, parts.params = &params, parts.tape = &tape,
    parts.world = world.get(), parts.device_world = world.get(), parts.plan = &plan;
    parts.sequence_len = 8;
    trainer = std::make_unique<Trainer>(spec, parts);
    const BatchView& batch = trainer->last_batch();
    for (int32_t i = 0; i < 16; ++i)
      batch.tokens.as<int32_t>()[i] = i % 8, batch.positions.as<int32_t>()[i] = 0;
    EXPECT_EQ(pipe(quiet), 0);
  }
  ~Bench() { close(quiet[0]), close(quiet[1]); }

  RunWatchOptions options() {
    RunWatchOptions o;
    o.directory = dir / "run";
    o.name = "watched";
    o.version = "1";
    o.isa = "portable";
    o.learning_rate = 0.5;
    o.gemm_flops_per_second = 1e9;
    o.telemetry.outliers_every_steps = 3;
    o.telemetry.osp_tokens = 5;
    o.memory_bytes = [] { return std::map<std::string, int64_t>{{"parameters", 10}, {"activations", 20}}; };
    o.progress_descriptor = quiet[1];
    return o;
  }
  StepResult result(int64_t step) const {
    StepResult r;
    r.step = step, r.total_steps = 4, r.tokens = step * 32, r.loss = 3.0 / static_cast<double>(step),
    r.grad_norm = 2;
    r.learning_rate_factor = 0.5, r.seconds = 0.25;
    return r;
  }
  std::vector<json> entries() const {
    std::ifstream in(dir / "run" / "metrics.jsonl");
    std::vector<json> all;
    for (std::string line; std::getline(in, line);) all.push_back(json::parse(line));
    return all;
  }
  /// What was printed; at least a byte, and less than a pipe holds.
  std::string said() const {
    std::string text(size_t{1} << 16, '\0');
    text.resize(static_cast<size_t>(read(quiet[0], text.data(), text.size())));
    return text;
  }
  json summary() const { return json::parse(std::ifstream(dir / "run" / "summary.json")); }
  int64_t count(const std::string& event) const {
    int64_t n = 0;
    for (const json& e : entries()) n += e["event"] == event;
    return n;
  }
};

TEST(RunWatch, AnEvaluationSaysWhetherItWasQuantized) {
  Bench b;
  const QuantScheme scheme, calibrating{.calibrates = true}, *none = nullptr;
  Parameter& weight = b.params.add("layers.0.attn.q.weight", 0, {16, 16}, Init{});
  RunWatch watch(b.options(), *b.world, b.queue);
  EvalResult eval;
  for (const QuantScheme* s : {none, &calibrating, &scheme}) {
    weight.scheme = s;
    watch.after_eval(*b.trainer, eval);
  }
  weight.scheme = nullptr;
  std::vector<std::string> said;
  for (const json& e : b.entries()) said.push_back(e["quantization"]);
  EXPECT_EQ(said, (std::vector<std::string>{"none", "none", "as trained"}));
}

TEST(RunWatch, AWholeRunIsWrittenDown) {
  Bench b;
  RunWatch watch(b.options(), *b.world, b.queue);
  watch.on_start(*b.trainer);
  EXPECT_EQ(b.summary()["status"], "running");
  for (int64_t step = 1; step <= 4; ++step) watch.after_step(*b.trainer, b.result(step));
  EvalResult eval;
  eval.step = 4, eval.tokens = 128, eval.loss = 1.5, eval.counted_tokens = 64;
  watch.after_eval(*b.trainer, eval);
  watch.checkpoint(3, "checkpoints/step_3", {}, 1.5, 2.5);
  watch.checkpoint(4, "", "disk full", 1.5, 2.5);
  watch.on_end(*b.trainer, b.result(4));

  EXPECT_EQ(b.count("start"), 1);
  EXPECT_EQ(b.count("train"), 4);
  EXPECT_EQ(b.count("eval"), 1);
  EXPECT_EQ(b.count("checkpoint"), 2);
  for (const json& e : b.entries()) {
    if (e["event"] != "checkpoint") continue;
    EXPECT_EQ(e["tokens"], e["step"].get<int64_t>() * 32);
    EXPECT_EQ(e.contains("failure"), e["step"] == 4);
    EXPECT_EQ(e.contains("path"), e["step"] == 3);
  }
  EXPECT_EQ(b.count("end"), 1);
  const json train = b.entries().at(1);
  EXPECT_EQ(train["step"], 1);
  EXPECT_EQ(train["tokens"], 32);
  EXPECT_EQ(train["loss"], 3.0);
  EXPECT_EQ(train["learning_rate"], 0.25);
  EXPECT_EQ(train["tokens_per_second"], 128.0);
  EXPECT_NEAR(train["gemm_percent"].get<double>(), 100 * 128 * 1e6 / 1e9, 1e-9);
  EXPECT_EQ(train["step_ms"], 250.0);

  const json s = b.summary();
  EXPECT_EQ(s["status"], "finished");
  EXPECT_EQ(s["step"], 4);
  EXPECT_EQ(s["train_loss"], 0.75);
  EXPECT_EQ(s["validation_loss"], 1.5);
  EXPECT_EQ(s["tokens_per_second"], 128.0);
  EXPECT_EQ(s["memory_peak_bytes"]["activations"], 20);
  EXPECT_EQ(s["hosts"][0]["isa"], "portable");
}

TEST(RunWatch, OutliersAreMeasuredAtTheFirstTheDueAndTheLastStepInBothProtocols) {
  Bench b;
  RunWatch watch(b.options(), *b.world, b.queue);
  watch.on_start(*b.trainer);
  for (int64_t step = 1; step <= 4; ++step) watch.after_step(*b.trainer, b.result(step));
  std::string seen;
  for (const json& e : b.entries())
    if (e["event"] == "outliers" && e["tensor"] == "block_input")
      seen += fmt::format("{}{} ", e["protocol"].get<std::string>(), e["step"].get<int64_t>());
  EXPECT_EQ(seen, "context1 osp1 context3 osp3 context4 osp4 ");
  ASSERT_EQ(b.model.shapes.size(), 6u);
  EXPECT_EQ(b.model.shapes[0], (Shape{2, 8}));
  EXPECT_EQ(b.model.shapes[1], (Shape{5, 1})) << "five sequences of length one";
  EXPECT_EQ(b.arena.used_bytes(), 0) << "nothing stays on the tape";
  for (const json& e : b.entries())
    if (e["event"] == "outliers") {
      EXPECT_EQ(e["tokens_measured"], e["protocol"] == "osp" ? 5 : 16);
    }
  watch.on_end(*b.trainer, b.result(4));
}

TEST(RunWatch, ASkippedUpdateIsAnEntryOfItsOwn) {
  Bench b;
  RunWatch watch(b.options(), *b.world, b.queue);
  watch.on_start(*b.trainer);
  StepResult r = b.result(2);
  r.loss = std::nan("");
  r.skipped = true;
  r.skipped_total = 1;
  watch.after_step(*b.trainer, r);
  EXPECT_EQ(b.count("skipped_update"), 1);
  EXPECT_EQ(b.entries().at(1)["loss"], "NaN");
  watch.on_end(*b.trainer, b.result(4));
}

TEST(RunWatch, AResumedRunGoesOnInTheSameFileWithoutRepeatingSteps) {
  Bench b;
  {
    RunWatch watch(b.options(), *b.world, b.queue);
    watch.on_start(*b.trainer);
    for (int64_t step = 1; step <= 3; ++step) watch.after_step(*b.trainer, b.result(step));
  }
  EXPECT_EQ(b.summary()["status"], "failed") << "destroyed without an end";
  RunWatchOptions options = b.options();
  options.resumed_step = 2;
  RunWatch watch(options, *b.world, b.queue);
  watch.on_start(*b.trainer);
  for (int64_t step = 3; step <= 4; ++step) watch.after_step(*b.trainer, b.result(step));
  watch.on_end(*b.trainer, b.result(4));
  std::string steps;
  for (const json& e : b.entries())
    if (e["event"] == "train") steps += fmt::format("{} ", e["step"].get<int64_t>());
  EXPECT_EQ(steps, "1 2 3 4 ");
  EXPECT_EQ(b.count("start"), 2);
  int files = 0;
  for ([[maybe_unused]] const auto& file : fs::directory_iterator(b.dir / "run" / "tensorboard")) ++files;
  EXPECT_EQ(files, 2);
}

TEST(RunWatch, AFullDiskEndsNoRunAndWhatWaitedIsWrittenWhenThereIsRoom) {
  Bench b;
  RunWatch watch(b.options(), *b.world, b.queue);
  watch.on_start(*b.trainer);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit full{static_cast<rlim_t>(fs::file_size(b.dir / "run" / "metrics.jsonl")) + 10,
                    before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &full);
  EXPECT_NO_THROW({
    for (int64_t step = 1; step <= 3; ++step) watch.after_step(*b.trainer, b.result(step));
  });
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_NO_THROW(watch.after_step(*b.trainer, b.result(4)));
  EXPECT_EQ(b.count("train"), 4);
  EXPECT_GT(b.count("outliers"), 0);
  setrlimit(RLIMIT_FSIZE, &full);
  EXPECT_NO_THROW(watch.on_end(*b.trainer, b.result(4)));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(b.count("end"), 0);
  const std::string said = b.said();
  const auto times = [&](const std::string& words) {
    int n = 0;
    for (size_t at = said.find(words); at != std::string::npos; at = said.find(words, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(times("cannot write " + (b.dir / "run" / "metrics.jsonl").string() + ": File too large"), 2)
      << said;
  EXPECT_EQ(times("metrics.jsonl is written again"), 1) << said;
  EXPECT_EQ(times("and 0 records are lost"), 1) << said;
  EXPECT_EQ(times("summary.json.partial: File too large"), 1) << said;
}

TEST(RunWatch, AStoppedRunSaysSo) {
  Bench b;
  RunWatch watch(b.options(), *b.world, b.queue);
  watch.on_start(*b.trainer);
  StepResult r = b.result(2);
  r.stopping = true;
  watch.after_step(*b.trainer, r);
  watch.on_end(*b.trainer, r);
  EXPECT_EQ(b.summary()["status"], "stopped");
  EXPECT_EQ(b.count("train"), 1);
}

}  // namespace
}  // namespace osprey
