#include "launch/scaling_record.h"

#include <algorithm>

#include "framework/config/numbers.h"
#include "framework/eval/round_to_nearest.h"
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

/// "mxfp4/mxfp4/bf16".
std::string formats_in_words(const QuantGroupSpec& q, DType compute) {
  return fmt::format("{}/{}/{}", operand_name(q.weights, compute), operand_name(q.activations, compute),
                     operand_name(q.gradients, compute));
}

/// A step as a share of the run, so that runs of several lengths that begin alike read alike.
std::string share_of(int64_t step, int64_t total_steps) {
  const double percent = 100.0 * static_cast<double>(step) / static_cast<double>(total_steps);
  return percent < 1 ? "under 1 percent" : fmt::format("{:.0f} percent", percent);
}

/// What the formats do not say of a group, in words: "scales even even, rotation 32, from 70 percent on".
std::string how_of(const QuantGroupSpec& q, const TrainSpec& train) {
  std::string text = "scales";
  for (const auto* o : {&q.weights, &q.activations, &q.gradients})
    for (const auto& [word, rule] : scale_rules())
      if (*o && (*o)->scale == rule) text += fmt::format(" {}", word);
  const auto add = [&](bool there, const std::string& words) {
    if (there) text += ", " + words;
  };
  const auto share = [&](int64_t step) { return share_of(step, train.total_steps()); };
  using Kind = kernels::Rounding::Kind;
  add(q.gradients && q.gradients->rounding == Kind::stochastic, "stochastic gradients");
  add(q.rotation > 0, fmt::format("rotation {}", q.rotation));
  add(q.backward_rotation > 0, fmt::format("backward rotation {}", q.backward_rotation));
  add(q.measured(), fmt::format("rotations measured in {} steps with outliers above {}", q.calibration_steps,
                                format_real(q.outlier_ratio)));
  add(q.outlier_rows > 0, fmt::format("{} outlier rows unquantized", q.outlier_rows));
  add(q.gradient_mask == QuantGroupSpec::GradientMask::unclipped, "masked gradients");
  const QuantSpan span = span_of(q, train.global_batch_tokens);
  add(span.begin > 0, "from " + share(span.begin) + " on");
  if (span.anneal > 0) {
    const bool first = q.anneal_order == QuantGroupSpec::AnnealOrder::first_layers;
    add(true, fmt::format("annealed over {}, {} layers first", share(span.anneal), first ? "first" : "last"));
  }
  add(span.end < INT64_MAX, "to " + share(span.end));
  if (q.freeze) {
    const int64_t from = freezes_from(q, train.global_batch_tokens), anneal = q.freeze->anneal_steps;
    add(true, fmt::format("frozen{}{} to a boundary of {}", from > 0 ? " from " + share(from) + " on" : "",
                          anneal > 0 ? " over " + share(anneal) : "", format_real(q.freeze->boundary)));
  }
  return text;
}

/// Elements of the linear layers that each group of the recipe takes; first match wins.
std::vector<int64_t> elements_of_groups(const Recipe& recipe, const ParamStore& params) {
  std::vector<int64_t> elements(recipe.quant.size(), 0);
  for (const auto& p : params.all())
    if (const QuantGroupSpec* first = first_match(recipe.quant, p->name); first && is_block_linear(p->name))
      elements[static_cast<size_t>(first - recipe.quant.data())] += p->shape.numel();
  return elements;
}

/// The formats of the group with the most parameters, and all groups in words.
RunFormats formats_of(const Recipe& recipe, const ParamStore& params) {
  const DType compute = recipe.train.precision;
  const std::string plain = name(compute);
  if (recipe.quant.empty()) return {plain, plain, plain, {}, {}};
  const std::vector<int64_t> elements = elements_of_groups(recipe, params);
  const auto most = std::max_element(elements.begin(), elements.end()) - elements.begin();
  const QuantGroupSpec& q = recipe.quant[static_cast<size_t>(most)];
  const BlockFormat& f = (q.weights ? q.weights : q.activations)->block_format();
  std::string how;
  for (const QuantGroupSpec& group : recipe.quant) {
    std::string words = how_of(group, recipe.train);
    if (recipe.quant.size() > 1) words = formats_in_words(group, compute) + ", " + words;
    // What takes all linear layers needs no pattern.
    if (recipe.quant.size() > 1 || group.match != QuantGroupSpec().match) words = group.match + ": " + words;
    how += (how.empty() ? "" : "; ") + words;
  }
  return {operand_name(q.weights, compute), operand_name(q.activations, compute),
          operand_name(q.gradients, compute),
          f.granularity == Granularity::block ? f.block : recipe.model.hidden_size, how};
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
  r.formats = formats_of(recipe, session.params);
  r.optimizers = optimizers_of(recipe);
  r.schedule = schedule_of(recipe);
  r.seed = recipe.run.seed;
  r.tokenizer = tokenizer.fingerprint();
  r.flops = session.model->flops_per_token(r.sequence_len) * static_cast<double>(r.tokens);
  return r;
}

}  // namespace osprey
