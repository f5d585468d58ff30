#include "launch/likelihood_eval.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "framework/clock.h"
#include "framework/eval/likelihood.h"

namespace osprey {
namespace {

struct EncodedTask {
  std::vector<EncodedPair> pairs;  // of all choices of all rows, in order
  int64_t longest = 0;             // tokens that a model reads
  int64_t cut = 0;                 // texts that lost tokens at their beginning
};

EncodedTask encode(const Task& task, const std::vector<TaskRow>& examples, bool of_task,
                   const Tokenizer& tokenizer, const TaskEvalOptions& options) {
  EncodedTask encoded;
  for (const TaskRow& row : task.rows) {
    const std::string context = context_of(row, examples, of_task ? &row : nullptr, options.shots);
    for (const std::string& choice : row.choices) {
      try {
        encoded.pairs.push_back(encode_pair(tokenizer, context, continuation_of(context, choice)));
      } catch (const Error& e) {
        fail(fmt::format("{}:{}", task.path, row.line), "{}", e.what());
      }
      const EncodedPair& pair = encoded.pairs.back();
      require(
          pair.scored <= options.sequence_len, fmt::format("{}:{}", task.path, row.line),
          "a continuation has {} tokens, more than a sequence of {}; give a longer --sequence-len or drop the row",
          pair.scored, options.sequence_len);
      const auto inputs = static_cast<int64_t>(pair.tokens.size()) - 1;
      encoded.cut += inputs > options.sequence_len;
      encoded.longest = std::max(encoded.longest, std::min(inputs, options.sequence_len));
    }
  }
  return encoded;
}

nlohmann::ordered_json json_of(const Task& task, const TaskScores& s) {
  nlohmann::ordered_json json = {{"task", task.path}, {"rows", s.rows}};
  if (task.kind == Task::Kind::multiple_choice) {
    json["acc"] = s.accuracy.value;
    json["acc_stderr"] = s.accuracy.standard_error;
    json["acc_norm"] = s.accuracy_normalized.value;
    json["acc_norm_stderr"] = s.accuracy_normalized.standard_error;
  }
  json["loss"] = s.loss.value;
  json["loss_stderr"] = s.loss.standard_error;
  json["bits_per_byte"] = s.bits_per_byte;
  return json;
}

void print(const Task& task, const TaskScores& s) {
  const auto line = [](const char* name, const Estimate& e) {
    fmt::print("{:<28} {:>9.4f} +- {:.4f}\n", name, e.value, e.standard_error);
  };
  if (task.kind == Task::Kind::multiple_choice) {
    line("acc", s.accuracy);
    line("acc_norm (by byte)", s.accuracy_normalized);
  }
  line(task.kind == Task::Kind::multiple_choice ? "loss of the right choice" : "loss", s.loss);
  fmt::print("{:<28} {:>9.4f}\n", "bits per byte", s.bits_per_byte);
}

/// The tokens that the loader's rows hold, in order.
std::vector<int32_t> tokens_of(ValidationData& data) {
  const int64_t length = data.spec().sequence_len;
  Arena memory("token buffers", {}, 4 * (length * 4 + 64));
  const auto one = [&] { return memory.alloc({1, length}, DType::i32); };
  BatchView row{.tokens = one(), .targets = one(), .positions = one(), .document_start = {}};
  if (!data.spec().attention_across_documents) row.document_start = one();
  std::vector<int32_t> tokens;
  int32_t next = -1;
  size_t end = 0;
  for (int64_t r = 0; r < data.rows(); ++r) {
    data.batch(r, row);
    for (int64_t t = 0; t < length; ++t) {
      tokens.push_back(row.tokens.as<int32_t>()[t]);
      if (row.targets.as<int32_t>()[t] < 0) continue;
      next = row.targets.as<int32_t>()[t];
      end = tokens.size();
    }
  }
  require(end > 0, "eval", "the validation data hold no token to predict");
  tokens.resize(end);  // the last row is filled up
  tokens.push_back(next);
  return tokens;
}

}  // namespace

void evaluate_task(LoadedModel& m, const TaskEvalOptions& given) {
  TaskEvalOptions options = given;
  if (!options.sequence_len) options.sequence_len = m.hub.context().sequence_len;
  const Task task = read_task(options.task);
  Task examples;
  if (options.shots_file) {
    examples = read_task(*options.shots_file);
    require(examples.kind == task.kind, *options.shots_file, "holds rows of another kind than {}", task.path);
  }
  const EncodedTask encoded = encode(task, options.shots_file ? examples.rows : task.rows,
                                     !options.shots_file, *m.tokenizer, options);
  require_evaluation_memory(m, options.batch, encoded.longest);
  std::vector<ScoredText> texts;
  std::vector<int64_t> scored;
  for (const EncodedPair& pair : encoded.pairs) {
    texts.push_back({pair.tokens, pair.scored});
    scored.push_back(pair.scored);
  }
  const double start = now_s();
  const auto sums =
      log_likelihoods(*m.model, m.tape, texts, {.rows = options.batch, .sequence_len = options.sequence_len});
  const double seconds = now_s() - start;
  const TaskScores scores = score_task(task, sums, scored);
  if (encoded.cut > 0)
    fmt::print(stderr, "note: {} of {} texts are longer than {} tokens and lost their beginning\n",
               encoded.cut, texts.size(), options.sequence_len);
  if (options.report == ReportAs::json) {
    auto json = json_of(task, scores);
    json["checkpoint"] = m.path.string();
    json["shots"] = options.shots.shots;
    json["cut_texts"] = encoded.cut;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}\n{}: {} rows, {} shots, {:.1f} s\n\n", m.path.string(), task.path, scores.rows,
             options.shots.shots, seconds);
  print(task, scores);
}

void evaluate_windows(LoadedModel& m, ValidationData& data, int64_t batch, int64_t stride, ReportAs report) {
  const int64_t length = data.spec().sequence_len;
  const auto& sources = data.spec().validation_fraction > 0 ? data.spec().train : data.spec().validation;
  require(sources.empty() || !sources.front().instructions(), "eval",
          "--stride counts every token, and of instruction data such as {} only answers are learnt; leave "
          "--stride out, and the loss is that of the answers",
          sources.empty() ? "" : sources.front().path);
  require(stride <= length, "eval", "--stride {} is longer than a sequence of {} tokens", stride, length);
  require_evaluation_memory(m, batch, length);
  const std::vector<int32_t> tokens = tokens_of(data);
  std::vector<ScoredText> texts;
  std::span<const int32_t> rest(tokens);
  while (!data.spec().attention_across_documents && !rest.empty()) {
    const auto end = std::find(rest.begin(), rest.end(), m.tokenizer->eos_id());
    const auto document = static_cast<size_t>(end - rest.begin()) + (end != rest.end());
    add_windows(rest.first(document), length, stride, texts);
    rest = rest.subspan(document);
  }
  add_windows(rest, length, stride, texts);
  double nats = 0;
  int64_t count = 0;
  for (const double sum : log_likelihoods(*m.model, m.tape, texts, {.rows = batch, .sequence_len = length}))
    nats -= sum;
  for (const ScoredText& text : texts) count += text.scored;
  const double loss = nats / static_cast<double>(count);
  if (report == ReportAs::json) {
    const nlohmann::ordered_json json = {{"checkpoint", m.path.string()}, {"loss", loss},
                                         {"perplexity", std::exp(loss)},  {"tokens", count},
                                         {"sequence_len", length},        {"stride", stride}};
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}\n{} tokens of validation data, windows of {} by {}\n\nloss {:.4f}, perplexity {:.2f}\n",
             m.path.string(), count, length, stride, loss, std::exp(loss));
}

}  // namespace osprey
