#include "launch/scaling_record.h"

#include <algorithm>

#include "framework/config/numbers.h"
#include "launch/checkpoints.h"

namespace osprey {
namespace {

/// The learning rates in words: "wsd, warmup 30 steps, decay from step 420, peaks 4.0e-3 4.0e-3".
std::string schedule_of(const Recipe& recipe) {
  using Kind = ScheduleSpec::Kind;
  const TrainSpec& train = recipe.train;
  const Schedule schedule(recipe.schedule, train.total_steps(), train.global_batch_tokens);
  const Kind kind = recipe.schedule.kind;
  std::string text = kind == Kind::constant ? "constant"
                     : kind == Kind::linear ? "linear"
                     : kind == Kind::cosine ? "cosine"
                                            : "wsd";
  text += fmt::format(", warmup {} steps", schedule.warmup_steps());
  if (kind == Kind::wsd) {
    const bool linear = recipe.schedule.decay == ScheduleSpec::Decay::linear;
    text +=
        fmt::format(", {} decay from step {}", linear ? "linear" : "one_minus_sqrt", schedule.decay_begin());
  }
  if (kind != Kind::constant) text += ", to " + format_real(recipe.schedule.min_ratio);
  text += ", peaks";
  for (const OptimizerGroupSpec& group : recipe.optim) text += " " + format_real(group.learning_rate);
  return text;
}

/// Each kind once.
std::vector<std::string> optimizers_of(const Recipe& recipe) {
  std::vector<std::string> names;
  for (const OptimizerGroupSpec& group : recipe.optim) {
    const char* const kind = group.kind == OptimizerGroupSpec::Kind::muon ? "muon" : "adamw";
    if (std::find(names.begin(), names.end(), kind) == names.end()) names.emplace_back(kind);
  }
  return names;
}

/// What the formats do not say of a group, in words: "scales even even, rotation 32, from step 100".
std::string how_of(const QuantGroupSpec& q, int64_t step_tokens) {
  std::string text = "scales";
  for (const auto* o : {&q.weights, &q.activations, &q.gradients})
    for (const auto& [word, rule] : scale_rules())
      if (*o && (*o)->scale == rule) text += fmt::format(" {}", word);
  const auto add = [&](bool there, const std::string& words) {
    if (there) text += ", " + words;
  };
  using Kind = kernels::Rounding::Kind;
  add(q.gradients && q.gradients->rounding == Kind::stochastic, "stochastic gradients");
  add(q.rotation > 0, fmt::format("rotation {}", q.rotation));
  add(q.backward_rotation > 0, fmt::format("backward rotation {}", q.backward_rotation));
  add(q.measured(), "rotations measured");
  add(q.outlier_rows > 0, fmt::format("{} outlier rows unquantized", q.outlier_rows));
  add(q.gradient_mask == QuantGroupSpec::GradientMask::unclipped, "masked gradients");
  const QuantSpan span = span_of(q, step_tokens);
  add(span.begin > 0, fmt::format("from step {}", span.begin));
  add(span.anneal > 0, fmt::format("annealed over {}", span.anneal));
  add(span.end < INT64_MAX, fmt::format("to step {}", span.end));
  return text;
}

/// What most linear layers compute with: the first group's formats, and how many elements share a scale.
RunFormats formats_of(const Recipe& recipe) {
  const std::string plain = name(recipe.train.precision);
  if (recipe.quant.empty()) return {plain, plain, plain, {}, {}};
  const QuantGroupSpec& q = recipe.quant.front();
  const DType compute = recipe.train.precision;
  const auto& blocked = q.weights ? q.weights : q.activations;
  const BlockFormat& f = blocked->block_format();
  return {operand_name(q.weights, compute), operand_name(q.activations, compute),
          operand_name(q.gradients, compute),
          f.granularity == Granularity::block ? f.block : recipe.model.hidden_size,
          how_of(q, recipe.train.global_batch_tokens)};
}

}  // namespace

std::filesystem::path scaling_file(const Recipe& recipe) {
  return std::filesystem::path(recipe.run.output_dir) / "scaling.jsonl";
}

RunRecord record_of(const Recipe& recipe, const Session& session, const Tokenizer& tokenizer) {
  RunRecord r;
  r.run = recipe.run.name;
  r.recipe_hash = recipe_hash(recipe);
  r.version = OSPREY_VERSION;
  r.parameters = session.params.numel();
  r.parameters_without_embedding = without_embedding(session.params);
  r.tokens = recipe.train.total_steps() * recipe.train.global_batch_tokens;
  r.batch_tokens = recipe.train.global_batch_tokens;
  r.sequence_len = recipe.data.sequence_len;
  r.formats = formats_of(recipe);
  r.optimizers = optimizers_of(recipe);
  r.schedule = schedule_of(recipe);
  r.seed = recipe.run.seed;
  r.tokenizer = tokenizer.fingerprint();
  r.flops = session.model->flops_per_token(r.sequence_len) * static_cast<double>(r.tokens);
  return r;
}

}  // namespace osprey
