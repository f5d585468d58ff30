#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstdint>
#include <memory>

#include "framework/clock.h"
#include "framework/config/reader.h"
#include "framework/eval/round_to_nearest.h"
#include "framework/quant/scheme.h"
#include "framework/quant/step_sizes.h"
#include "framework/telemetry/metrics_log.h"
#include "framework/telemetry/outlier_observer.h"
#include "kernels/device.h"
#include "kernels/pointwise.h"
#include "launch/commands/command.h"
#include "launch/likelihood_eval.h"
#include "launch/loaded_model.h"
#include "launch/outlier_tables.h"

namespace osprey {

namespace {

constexpr const char* default_formats[] = {"w8a8", "w4a16", "w4a4"};

struct Options : CheckpointOptions {
  std::vector<std::string> data;
  std::optional<std::vector<std::string>> formats;
  int64_t tokens = 65536;
  int64_t batch = 8;
  int64_t sequence_len = 0;
  bool clip_search = false;
  TaskEvalOptions task;
  std::optional<int64_t> stride;
  bool json = false;

  ReportAs report() const { return json ? ReportAs::json : ReportAs::text; }
};

struct Result {
  double loss = 0;
  double unigram_loss = 0;  // entropy of the targets' own frequencies: no model without context does better
  int64_t tokens = 0;
  double seconds = 0;
};

double entropy(const std::vector<int64_t>& counts, int64_t total) {
  double sum = 0;
  for (int64_t c : counts)
    if (c > 0) sum -= static_cast<double>(c) * std::log(static_cast<double>(c) / static_cast<double>(total));
  return sum / static_cast<double>(total);
}

/// Mean loss over the data.
Result evaluate(LoadedModel& m, ValidationData& data, StagedBatch& batch) {
  const double start = now_s();
  Arena scalars("loss sums", m.queue.device, 64);
  const Tensor sums = scalars.alloc({2}, DType::f64);
  kernels::fill(m.queue, {.y = sums, .value = 0});
  std::vector<int64_t> counts(static_cast<size_t>(m.hub.spec().vocab_size));
  for (int64_t first = 0; first < data.rows(); first += batch.host().batch()) {
    m.model->loss(m.tape, batch.fill(data, first), {.grad_scale = {}, .sums = sums});
    m.tape.reset();
    const Tensor& targets = batch.host().targets;
    for (int64_t i = 0; i < targets.numel(); ++i)
      if (const int32_t target = targets.as<int32_t>()[i]; target >= 0) ++counts[static_cast<size_t>(target)];
  }
  double total[2];
  kernels::download(m.queue, total, sums);
  const auto counted = static_cast<int64_t>(total[1]);
  require(counted > 0, "eval", "the validation data hold no token to predict");
  return {total[0] / total[1], entropy(counts, counted), counted, now_s() - start};
}

constexpr const char *plain_label = "unquantized", *packed_label = "packed, as stored";

void report(const std::string& name, const Result& r, const Result& plain) {
  fmt::print("{:<28} {:>9.4f} {:>12.2f}", name, r.loss, std::exp(r.loss));
  if (name != plain_label && name != packed_label) fmt::print(" {:>+10.4f}", r.loss - plain.loss);
  fmt::print("\n");
}

/// Writes what was evaluated into metrics.jsonl of the run that the checkpoint stands in, if it stands in
/// one.
class RunNotes {
 public:
  RunNotes(const LoadedModel& m, const std::vector<std::string>& data, int64_t sequence_len)
      : run_(run_of(m.path)), data_(fmt::format("{}", fmt::join(data, " "))) {
    if (run_.empty()) return;
    if (std::filesystem::exists(m.path / "state.yaml")) {
      const CheckpointState state = read_checkpoint_state(m.path);
      step_ = state.step;
      tokens_ = state.tokens;
    }
    if (const std::filesystem::path recipe = m.path / "recipe.yaml"; std::filesystem::exists(recipe))
      own_length_ = read_recipe(recipe.string()).data.sequence_len;
    if (own_length_ != sequence_len) sequence_len_ = sequence_len;
  }

  /// What differs from the run's own evaluations is named, so that a report can tell them apart.
  void add(const std::string& format, const Result& r) const {
    if (run_.empty()) return;
    MetricsEntry e("eval", step_, tokens_);
    e.add("source", "eval").add("quantization", format);
    if (!data_.empty()) e.add("data", data_);
    e.add("sequence_len", sequence_len_);
    e.add("loss", r.loss).add("perplexity", std::exp(r.loss));
    e.add("tokens_evaluated", r.tokens).add("eval_ms", r.seconds * 1e3);
    append_entry(run_ / "metrics.jsonl", e);
  }
  /// Tells where the lines are, and why a report leaves them out if it does.
  void tell() const {
    if (run_.empty()) return;
    fmt::print("\nadded to {}\n", (run_ / "metrics.jsonl").string());
    if (sequence_len_ && own_length_)
      fmt::print("(in sequences of {}; the run has {}, and osprey report takes those: --sequence-len {})\n",
                 *sequence_len_, *own_length_, *own_length_);
  }

 private:
  std::filesystem::path run_;                         // empty: none
  std::string data_;                                  // instead of the recipe's
  std::optional<int64_t> own_length_, sequence_len_;  // the latter where it is another
  int64_t step_ = 0, tokens_ = 0;
};

/// "w4a4", simulated, or a preset of the recipe's quant section, whose packed kernels are used.
struct Quantization {
  std::string name;
  std::optional<IntegerFormat> integers;
  QuantGroupSpec group;

  explicit Quantization(const std::string& text) : name(text) {
    if (text.size() > 1 && text[0] == 'w' && text[1] >= '0' && text[1] <= '9')
      integers = parse_integer_format(text);
    else
      try {
        group = read_spec<QuantGroupSpec>("preset: " + text, "--quantize");
      } catch (const Error& e) {
        fail("--quantize", "{}; or integers such as w8a8, w4a16 and w4a4", e.what());
      }
    require(
        !learns_step(group.weights) && !learns_step(group.activations), "--quantize",
        "the steps of {} are learnt in training; pack a run that learnt them (osprey quantize RUN packed) and "
        "evaluate that",
        text);
  }
};

Result evaluate_quantized(LoadedModel& m, ValidationData& data, StagedBatch& batch, const Quantization& q,
                          kernels::ClipSearch clip) {
  if (q.integers) {
    const QuantizedScope quantized(m.tape, m.params, *q.integers, clip);
    return evaluate(m, data, batch);
  }
  // Weights that were trained with a rotation are good in that one: the signs follow from the run's seed.
  const bool has_state = std::filesystem::exists(m.path / "state.yaml");
  const int64_t seed = has_state ? read_checkpoint_state(m.path).seed : 0;
  QuantSchemes schemes(std::span(&q.group, 1), m.params, static_cast<uint64_t>(seed));
  schemes.decide_as(has_state ? read_checkpoint_state(m.path).patterns : std::vector<LayerPatterns>{});
  schemes.activate(schemes.changes().back());
  return evaluate(m, data, batch);
}

void run_likelihoods(const Options& options) {
  LoadedModel m(options.checkpoint, options.threads, options.on_device());
  if (!options.stride) {
    TaskEvalOptions task = options.task;
    task.batch = options.batch;
    task.sequence_len = options.sequence_len;
    task.report = options.report();
    return evaluate_task(m, task);
  }
  const int64_t length = options.sequence_len ? options.sequence_len : m.hub.context().sequence_len;
  const auto data = validation_data(m, options.data, length, options.tokens);
  evaluate_windows(m, *data, options.batch, *options.stride, options.report());
}

void run(const Options& options) {
  if (options.stride || !options.task.task.empty()) return run_likelihoods(options);
  require(!options.json, "eval",
          "--json needs --task or --stride; figures of a run are in its metrics.jsonl");
  std::vector<Quantization> quantizations;
  if (options.formats)
    for (const std::string& f : *options.formats) quantizations.emplace_back(f);
  LoadedModel m(options.checkpoint, options.threads, options.on_device());
  if (!quantizations.empty()) m.require_unpacked("cannot be rounded once more");
  if (!options.formats && !m.schemes)
    for (const char* f : default_formats) quantizations.emplace_back(f);
  const int64_t length = options.sequence_len ? options.sequence_len : m.hub.context().sequence_len;
  require_evaluation_memory(m, options.batch, length);
  const auto data = validation_data(m, options.data, length, options.tokens);
  StagedBatch batch(m.queue, *data, options.batch);

  const Result plain = evaluate(m, *data, batch);
  fmt::print("{}\n{} tokens of validation data in sequences of {}, {:.1f} s\n\n", m.path.string(),
             plain.tokens, length, plain.seconds);
  fmt::print("{:<28} {:>9} {:>12} {:>10}\n", "round to nearest", "loss", "perplexity", "added loss");
  fmt::print("{:<28} {:>9.4f} {:>12.2f} {:>+10.4f}\n", "(best unigram model)", plain.unigram_loss,
             std::exp(plain.unigram_loss), plain.unigram_loss - plain.loss);
  report(m.schemes ? packed_label : plain_label, plain, plain);
  const RunNotes notes(m, options.data, length);
  notes.add("none", plain);
  for (const Quantization& q : quantizations) {
    const bool search = options.clip_search && q.integers;
    const Result r =
        evaluate_quantized(m, *data, batch, q, search ? kernels::ClipSearch::osp : kernels::ClipSearch::none);
    report(q.name + (search ? " (clip search)" : ""), r, plain);
    if (!search) notes.add(q.name, r);
  }
  fmt::print("\n{}\n", m.schemes
                           ? "Layers whose weights are packed compute with them as they are stored.\n"
                           : "Linear layers inside the blocks only. wNaM: weights per output row, symmetric, "
                             "activations per token, asymmetric.\n");
  print_outliers(measure_outliers_of(m, *data, batch, std::min(data->rows(), options.batch)),
                 OutlierDetail::over_layers);
  notes.tell();
}

void add_likelihood_options(CLI::App& command, Options& o) {
  CLI::Option* task = command.add_option(
      "--task", o.task.task,
      "JSON lines of questions instead: {\"query\", \"choices\", \"gold\": index or letter} gives acc and acc_norm, "
      "{\"query\", \"completion\"} the loss of the completion");
  CLI::Option* shots =
      command.add_option("--shots", o.task.shots.shots, "answered rows before each question")
          ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
          ->capture_default_str()
          ->needs(task);
  command
      .add_option("--shots-file", o.task.shots_file,
                  "where answered rows come from; else the other rows of the task")
      ->needs(shots);
  command.add_option("--shots-seed", o.task.shots.seed, "of drawing them")
      ->capture_default_str()
      ->needs(shots);
  CLI::Option* stride =
      command
          .add_option("--stride", o.stride,
                      "perplexity by windows of a sequence's length that go on by so many tokens, instead")
          ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command.add_flag("--json", o.json, "one line of JSON; with --task or --stride");
  for (const char* other : {"--quantize", "--clip-search"}) {
    task->excludes(command.get_option(other));
    stride->excludes(command.get_option(other));
  }
  for (const char* other : {"--data", "--tokens"}) task->excludes(command.get_option(other));
  task->excludes(stride);
}

}  // namespace

void add_eval(CLI::App& app) {
  const auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "eval",
      "loss, perplexity and outlier figures of a checkpoint, and the same after rounding it to few bits");
  o->add_to(*command);
  command->add_option("--data", o->data, "token shards (glob) instead of the recipe's validation data");
  command->add_option("--tokens", o->tokens, "validation tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  command
      ->add_option("--quantize", o->formats,
                   "comma separated: integers such as w4a4, or presets of the recipe's quant section such as "
                   "qat_mxfp4_w4a4")
      ->delimiter(',')
      ->capture_default_str();
  command->add_flag("--clip-search", o->clip_search,
                    "search each weight row's clipping (80 candidates, |error|^2.4)");
  command->add_option("--sequence-len", o->sequence_len, "length of a sequence; the checkpoint's if absent")
      ->check(CLI::Range(1, 1 << 30));
  command->add_option("--batch", o->batch, "sequences at a time")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  add_likelihood_options(*command, *o);
  command->footer(
      "Examples:\n  osprey eval runs/quickstart_osp --tokens 100000 --quantize w8a8,w4a4 --clip-search\n"
      "  osprey eval runs/quickstart_osp --stride 128\n"
      "  osprey eval runs/quickstart_osp --task questions.jsonl --shots 5");
  command->callback([o] { run(*o); });
}

}  // namespace osprey
