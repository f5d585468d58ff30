#include "framework/quant/scheme.h"

#include <algorithm>
#include <set>

#include "framework/config/glob.h"
#include "framework/eval/round_to_nearest.h"
#include "framework/quant/step_sizes.h"
#include "kernels/core/random.h"

namespace osprey {

namespace {

using Kind = kernels::Rounding::Kind;

std::string format_names() {
  std::string names;
  for (const NamedFormat& f : block_formats()) names += (names.empty() ? "" : ", ") + std::string(f.name);
  return names;
}

bool is_format(const std::string& name) {
  for (const NamedFormat& f : block_formats())
    if (f.name == name) return true;
  return false;
}

QuantOperandSpec operand(const char* format, ScaleRule scale = ScaleRule::even,
                         Kind rounding = Kind::nearest_even) {
  return {.format = format, .scale = scale, .rounding = rounding};
}

}  // namespace

std::span<const std::pair<const char*, ScaleRule>> scale_rules() {
  static constexpr std::pair<const char*, ScaleRule> rules[] = {
      {"floor", ScaleRule::floor}, {"even", ScaleRule::even}, {"ceil", ScaleRule::ceil},
      {"rceil", ScaleRule::rceil}, {"mse", ScaleRule::mse},   {"four_over_six", ScaleRule::four_over_six},
      {"stats", ScaleRule::stats}, {"lsq", ScaleRule::lsq}};
  return rules;
}

void QuantOperandSpec::fields(Fields& f) {
  f("format", format, ("one of " + format_names()).c_str());
  f.rule(is_format(format), "format", fmt::format("'{}' is no format; there are {}", format, format_names()));
  f.choice(
      "scale", scale, scale_rules(),
      "how a block's scale follows from its values. mx*, powers of two: floor (OCP, clips), even (floor of the "
      "largest value rounded to the element's digits), ceil and rceil (never clip), mse (mxfp4 only, from the "
      "standard deviation, least error for normal values; clips). nvfp4 and nvint4: even (nearest, clips a "
      "little), rceil (up, never clips), four_over_six (nvfp4 only, the better of two scales). int8_* and "
      "int4_*: even (the largest value becomes the largest element). "
      "stats: int8_* and int4_* only, twice the mean of |x| becomes the largest element (StatsQ; clips). lsq: "
      "int8 and int4 of tensor or row only, the step between two codes is a parameter (LSQ; clips)");
  f.choice("rounding", rounding, {{"nearest_even", Kind::nearest_even}, {"stochastic", Kind::stochastic}},
           "forward rounds to nearest. For gradients: stochastic is unbiased where the scale does not clip, "
           "with ceil and rceil, and with even in int8_* and int4_*");
  f.rule(
      !(scale == ScaleRule::floor || scale == ScaleRule::ceil) || format.starts_with("mx"), "scale",
      "floor and ceil are for scales that are powers of two, mx*; take even, or for nvfp4 and nvint4 rceil");
  f.rule(scale != ScaleRule::rceil || format.starts_with("mx") || format.starts_with("nv"), "scale",
         "rceil is for mx*, nvfp4 and nvint4; take even, which clips nothing where scales are fp32");
  f.rule(scale != ScaleRule::four_over_six || format == "nvfp4", "scale", "four_over_six is for nvfp4");
  f.rule(scale != ScaleRule::mse || format == "mxfp4", "scale", "mse is for mxfp4");
  f.rule(scale != ScaleRule::stats || format.starts_with("int8_") || format.starts_with("int4_"), "scale",
         "stats is for formats with fp32 scales, int8_* and int4_*");
  const bool shared =
      format == "int8_tensor" || format == "int8_row" || format == "int4_tensor" || format == "int4_row";
  f.rule(
      scale != ScaleRule::lsq || shared, "scale",
      "lsq learns one step of a row or of the whole matrix: int8_tensor, int8_row, int4_tensor or int4_row");
}

void QuantFreezeSpec::fields(Fields& f) {
  f("first_step", first_step, "the first step in which weights may stand still", between(0, 1e12));
  f("first_tokens", first_tokens, "the same in tokens: the first step that begins at or after so many",
    between(0, 1e15));
  f("boundary", boundary,
    "a weight moves where it is at most this far from rounding to another code, in units of the distance of "
    "two codes; all others stand still. OFQ has 0.005",
    between(0, 0.5));
  f("anneal_steps", anneal_steps, "over so many steps the boundary goes down in a line from 0.5; 0: at once",
    between(0, 1e12));
  f.rule(!first_tokens || first_step == 0, "first_tokens",
         "freezing begins at a step or at a token; give one");
}

void QuantGroupSpec::apply(Preset p) {
  applied_ = p;
  weights.reset();
  activations.reset();
  gradients.reset();
  rotation = backward_rotation = 0;
  rotate = Rotate::always;
  gradient_mask = GradientMask::straight_through;
  switch (p) {
    case Preset::none:
      return;
    case Preset::qat_mxfp4_w4a4:
      weights = activations = operand("mxfp4");
      rotation = 32;
      return;
    case Preset::quartet:
      weights = activations = operand("mxfp4", ScaleRule::mse);
      // The paper's 4/3 times a floored scale leaves the largest value between half and all of the largest
      // element, as rceil does, which needs no factor in the product.
      gradients = operand("mxfp4", ScaleRule::rceil, Kind::stochastic);
      rotation = backward_rotation = 32;
      gradient_mask = GradientMask::unclipped;
      return;
    case Preset::nvfp4:
      weights = activations = operand("nvfp4", ScaleRule::four_over_six);
      gradients = operand("nvfp4", ScaleRule::rceil, Kind::stochastic);
      backward_rotation = 16;
      return;
    case Preset::mxint8:
      weights = activations = gradients = operand("mxint8");
      return;
    case Preset::weight_only:
      weights = operand("mxfp4");
      return;
    case Preset::down_8bit_input:
      match = "layers.*.mlp.down.weight";
      weights = operand("mxfp4");
      activations = operand("mxint8");
      return;
    case Preset::lsq:
      weights = activations = operand("int4_tensor", ScaleRule::lsq);
      gradient_mask = GradientMask::unclipped;
      return;
    case Preset::adahop:
      weights = activations = operand("mxfp4");
      gradients = operand("mxfp4", ScaleRule::rceil, Kind::stochastic);
      rotation = backward_rotation = 32;
      rotate = Rotate::measured;
      return;
  }
}

void QuantGroupSpec::fields(Fields& f) {
  f.choice(
      "preset", preset,
      {{"none", Preset::none},
       {"qat_mxfp4_w4a4", Preset::qat_mxfp4_w4a4},
       {"quartet", Preset::quartet},
       {"nvfp4", Preset::nvfp4},
       {"mxint8", Preset::mxint8},
       {"weight_only", Preset::weight_only},
       {"down_8bit_input", Preset::down_8bit_input},
       {"lsq", Preset::lsq},
       {"adahop", Preset::adahop}},
      "what the keys below default to. qat_mxfp4_w4a4: forward in mxfp4, rotated, backward in full; quartet: "
      "forward and backward in mxfp4 (Castro et al. 2505.14669); nvfp4: both in nvfp4, 4/6 scales (Quartet II, "
      "2601.22813, forward; NVIDIA 2509.25149, stochastic gradients); mxint8: all in mxint8 (2510.25602); "
      "weight_only: weights in mxfp4; down_8bit_input: mlp.down alone, weights in mxfp4 and inputs in mxint8 "
      "(2505.14302), to stand before a group for all others; lsq: forward in int4 with one learnt step for each "
      "weight and input (1902.08153); adahop: forward and backward in mxfp4, rotated where a calibration finds "
      "outliers that this helps against (after AdaHOP, 2604.02525)");
  if (preset != applied_) apply(preset);
  f("match", match,
    "pattern over parameter names, as in optim; first match wins, what nothing matches stays as it is");
  f.section("weights", weights, "weights in the forward product; null: as they are");
  f.section("activations", activations, "inputs in the forward product; null: as they are");
  f.section("gradients", gradients,
            "all four operands of the two backward products; null: products of dequantized operands");
  f("rotation", rotation,
    "randomised Hadamard of this many neighbours before weights and activations are rounded: 0 (none), 16, 32, 64 "
    "or 128");
  f("backward_rotation", backward_rotation, "the same for the operands of the backward products");
  f.choice(
      "rotate", rotate, {{"always", Rotate::always}, {"measured", Rotate::measured}},
      "measured: of each layer only those products whose operands have outliers along what is summed; the "
      "layer first computes unquantized for calibration_steps and counts");
  f.when(rotate == Rotate::measured, "rotate is measured", [&] {
    f("calibration_steps", calibration_steps, "from where the group begins to where it is quantized",
      between(1, 1e9));
    f("outlier_ratio", outlier_ratio,
      "rows, or columns, of a matrix have outliers when the largest rms of one is more than so many times their "
      "median",
      between(1.001, 1e6));
    f("outlier_rows", outlier_rows,
      "so many rows of x, or of dy, with the largest sums of squares are multiplied unquantized by the layer's "
      "weights, y = x W^T or dx = dy W, where most outliers of x, or of dy, were found in rows, which no rotation "
      "smooths; 0: none. For each micro batch of each rank; dW is as without, and dx where gradients have no format",
      between(0, 256));
    f.rule(rotation > 0 || backward_rotation > 0, "rotate",
           "measures which products to rotate, and rotation and backward_rotation are 0; give one a size");
  });
  f.choice("gradient_mask", gradient_mask,
           {{"straight_through", GradientMask::straight_through}, {"unclipped", GradientMask::unclipped}},
           "unclipped: no gradient passes where a value was clipped (QuEST's trust mask)");
  f("first_step", first_step, "unquantized before this 0-based step", between(0, 1e12));
  f("end_step", end_step, "unquantized again from this step on; null: to the end", between(1, 1e12));
  f("first_tokens", first_tokens,
    "instead of first_step: unquantized before the first step that begins at or after so many tokens of the run",
    between(0, 1e18));
  f("end_tokens", end_tokens,
    "instead of end_step: unquantized again from the first step that begins at or after so many tokens",
    between(1, 1e18));
  f("anneal_steps", anneal_steps,
    "the layers of the group join one after another, evenly spread over so many steps from where it begins; 0: "
    "all at once",
    between(0, 1e12));
  f.choice("anneal_order", anneal_order,
           {{"first_layers", AnnealOrder::first_layers}, {"last_layers", AnnealOrder::last_layers}},
           "which layers join first: those nearest the embedding, or those nearest the head");
  f.section(
      "freeze", freeze,
      "weights that are far from rounding to another code stand still (confidence-guided annealing of OFQ, "
      "2302.02210), for the end of a run; null: all move");

  const auto is_size = [](int64_t n) { return n == 0 || n == 16 || n == 32 || n == 64 || n == 128; };
  f.rule(is_size(rotation), "rotation", "must be 0, 16, 32, 64 or 128");
  f.rule(is_size(backward_rotation), "backward_rotation", "must be 0, 16, 32, 64 or 128");
  f.rule(weights || activations, "weights",
         "neither weights nor activations have a format; name one or a preset");
  const auto forward_rule = [&](const char* key, const std::optional<QuantOperandSpec>& o) {
    f.rule(!o || o->rounding == Kind::nearest_even, key, "rounds to nearest; stochastic is for gradients");
  };
  forward_rule("weights.rounding", weights);
  forward_rule("activations.rounding", activations);
  const auto learnt = [](const std::optional<QuantOperandSpec>& o) {
    return o && o->scale == ScaleRule::lsq;
  };
  f.rule(
      !learnt(activations) || activations->format.ends_with("_tensor"), "activations.format",
      "rows of activations are tokens, which come and go; lsq learns one step for all: int8_tensor or int4_tensor");
  f.rule(!learnt(gradients), "gradients.scale", "lsq learns from gradients, and theirs have none; take even");
  f.rule(!(learnt(weights) || learnt(activations)) || rotation == 0, "rotation",
         "must be 0 beside the scale lsq, which learns the step of numbers as they are");
  f.rule(!freeze || weights, "freeze", "is for weights, which have no format here");
  f.rule(
      !freeze || rotation == 0, "freeze",
      "needs rotation 0: a weight stands still where its own code is certain, and codes of rotated weights "
      "belong to sums of many; drop one of the two");
  f.rule(outlier_rows == 0 || gradient_mask == GradientMask::straight_through, "outlier_rows",
         "needs gradient_mask: straight_through, for rows that are computed unquantized clip nothing");
  f.rule(outlier_rows == 0 || !(learnt(weights) || learnt(activations)), "outlier_rows",
         "must be 0 beside the scale lsq, whose steps learn from all rows of quantized products");
  f.rule(rotation == 0 || (weights && activations), "rotation",
         "turns both operands of a product, so weights and activations need a format");
  f.rule(backward_rotation == 0 || gradients, "backward_rotation", "is for gradients, which have no format");
  f.rule(!gradients || (weights && activations), "gradients",
         "need weights and activations that have a format: backward quantizes what forward quantized again");
  f.rule(!end_step || *end_step > first_step, "end_step", "must be after first_step");
  f.rule(!end_tokens || *end_tokens > first_tokens.value_or(0), "end_tokens",
         "must be more than first_tokens");
  f.rule(
      !(first_step > 0 || end_step) || !(first_tokens || end_tokens),
      first_tokens ? "first_tokens" : "end_tokens",
      "a group begins and ends at steps (first_step, end_step) or at tokens (first_tokens, end_tokens); give "
      "one kind");
}

/// The first step that begins at or after so many tokens of the run.
static int64_t step_at_tokens(int64_t tokens, int64_t step_tokens, const std::string& match) {
  require(step_tokens > 0, "quant", "'{}' begins or ends at a token, and the tokens of a step are not known",
          match);
  return tokens / step_tokens + (tokens % step_tokens != 0);
}

int64_t freezes_from(const QuantGroupSpec& g, int64_t step_tokens) {
  return g.freeze->first_tokens ? step_at_tokens(*g.freeze->first_tokens, step_tokens, g.match)
                                : g.freeze->first_step;
}

QuantSpan span_of(const QuantGroupSpec& g, int64_t step_tokens) {
  QuantSpan span{.begin = g.first_step,
                 .end = g.end_step.value_or(INT64_MAX),
                 .calibration = g.measured() ? g.calibration_steps : 0,
                 .anneal = g.anneal_steps};
  if (g.first_tokens) span.begin = step_at_tokens(*g.first_tokens, step_tokens, g.match);
  if (g.end_tokens) span.end = step_at_tokens(*g.end_tokens, step_tokens, g.match);
  return span;
}

const QuantGroupSpec* first_match(std::span<const QuantGroupSpec> groups, const std::string& parameter) {
  for (const QuantGroupSpec& g : groups)
    if (Glob(g.match).matches(parameter)) return &g;
  return nullptr;
}

std::string operand_name(const std::optional<QuantOperandSpec>& o, DType compute) {
  return o ? o->format : name(compute);
}

namespace {

constexpr size_t most_problems_shown = 12;

/// Why this parameter cannot be computed as the group says; empty when it can.
std::string misfit(const QuantGroupSpec& g, const Parameter& p) {
  if (!is_block_linear(p.name)) return "is no linear layer of a block; only those are quantized";
  const int64_t out = p.shape[0], in = p.shape[1];
  try {
    for (const auto* o : {&g.weights, &g.activations})
      if (*o) packed_shapes((*o)->block_format(), out, in, "its inputs");
    if (g.gradients) packed_shapes(g.gradients->block_format(), in, out, "its outputs");
  } catch (const Error& e) {
    const std::string text = e.what();  // "[block_format] its inputs ..."
    return text.substr(std::min(text.size(), text.find("] ") + 2));
  }
  if (g.rotation > 0 && in % g.rotation != 0)
    return fmt::format("has {} inputs, which groups of {} do not divide (rotation)", in, g.rotation);
  if (g.backward_rotation > 0 && out % g.backward_rotation != 0)
    return fmt::format("has {} outputs, which groups of {} do not divide (backward_rotation)", out,
                       g.backward_rotation);
  return "";
}

}  // namespace

kernels::Rotation forward_rotation(const QuantGroupSpec& group, uint64_t seed) {
  return {.size = static_cast<int>(group.rotation),
          .seed = seed,
          .stream = stream_of("quantization, rotation of forward")};
}

QuantSchemes::QuantSchemes(std::span<const QuantGroupSpec> groups, ParamStore& params, uint64_t seed,
                           int64_t step_tokens)
    : specs_(groups.begin(), groups.end()), step_tokens_(step_tokens) {
  std::string problems;
  size_t count = 0;
  const auto problem = [&](const std::string& line) {
    if (++count <= most_problems_shown) problems += (problems.empty() ? "" : "\n  ") + line;
  };
  std::vector<Glob> globs;
  for (size_t g = 0; g < specs_.size(); ++g) {
    schemes_.push_back({.spec = &specs_[g], .group = g, .seed = seed});
    globs.emplace_back(specs_[g].match);
    const QuantSpan& span = spans_.emplace_back(span_of(specs_[g], step_tokens));
    if (span.end <= span.begin)
      problem(fmt::format("'{}' begins in step {} and ends in step {}; let it end later", specs_[g].match,
                          span.begin, span.end));
    else if (span.calibration >= span.end - span.begin)
      problem(
          fmt::format("'{}' lasts {} steps, not more than its calibration_steps {}; let it end later or "
                      "calibrate in fewer",
                      specs_[g].match, span.end - span.begin, span.calibration));
    else if (span.anneal > span.end - span.quantizes())
      problem(fmt::format(
          "'{}' lasts {} steps, fewer than its anneal_steps {}; let it end later or anneal faster",
          specs_[g].match, span.end - span.quantizes(), span.anneal));
  }
  std::vector<int64_t> taken(specs_.size(), 0), matched(specs_.size(), 0);
  for (const auto& p : params.all()) {
    QuantScheme* scheme = nullptr;
    for (size_t g = 0; g < specs_.size(); ++g) {
      if (!globs[g].matches(p->name)) continue;
      ++matched[g];
      if (scheme) continue;
      scheme = &schemes_[g];
      ++taken[g];
    }
    if (!scheme) continue;
    const std::string why = misfit(*scheme->spec, *p);
    if (!why.empty()) problem(fmt::format("{} {}", p->name, why));
    members_.push_back({.parameter = p.get(), .scheme = scheme, .calibrating = nullptr, .begin = 0});
  }
  for (size_t g = 0; g < specs_.size(); ++g) {
    if (matched[g] == 0) problem(fmt::format("'{}' matches no parameter", specs_[g].match));
    if (matched[g] > 0 && taken[g] == 0)
      problem(fmt::format("'{}' comes too late: groups before it take all it matches", specs_[g].match));
  }
  if (count > most_problems_shown) problems += fmt::format("\n  and {} more", count - most_problems_shown);
  require(problems.empty(), "quant", "{}", problems);
  for (Member& m : members_) {
    if (m.scheme->spec->measured()) {
      QuantScheme own = *m.scheme;
      own.decided = false;
      m.scheme = &schemes_.emplace_back(own);
      own.calibrates = true;
      m.calibrating = &schemes_.emplace_back(own);
    }
    const std::vector<int> order = layers_in_order(m.scheme->group);
    const auto place = std::find(order.begin(), order.end(), m.parameter->layer) - order.begin();
    m.begin = spans_[m.scheme->group].joins(place, static_cast<int64_t>(order.size()));
    const QuantGroupSpec& spec = *m.scheme->spec;
    if (const auto& freeze = spec.freeze)
      m.freezing = Freezing{{.begin = static_cast<double>(std::max(m.begin, freezes_from(spec, step_tokens))),
                             .anneal = static_cast<double>(freeze->anneal_steps),
                             .last = freeze->boundary}};
    declare_steps(params, *m.parameter, spec);
  }
}

QuantSchemes::~QuantSchemes() {
  for (const Member& m : members_) {
    m.parameter->scheme = nullptr;
    m.parameter->freezing = nullptr;
    m.parameter->quantized.reset();  // kept by scheme
  }
}

std::vector<int> QuantSchemes::layers_in_order(size_t group) const {
  std::set<int> layers;
  for (const Member& m : members_)
    if (m.scheme->group == group) layers.insert(m.parameter->layer);
  std::vector<int> order(layers.begin(), layers.end());
  if (specs_[group].anneal_order == QuantGroupSpec::AnnealOrder::last_layers)
    std::reverse(order.begin(), order.end());
  return order;
}

void QuantSchemes::activate(int64_t step) const {
  for (const Member& m : members_) {
    const QuantSpan& span = spans_[m.scheme->group];
    m.parameter->scheme = step >= m.begin && step < span.end              ? m.scheme
                          : step >= span.begin && step < span.quantizes() ? m.calibrating
                                                                          : nullptr;
    const bool freezes = m.parameter->scheme == m.scheme && m.freezing &&
                         static_cast<double>(step) >= m.freezing->schedule.begin;
    m.parameter->freezing = freezes ? &*m.freezing : nullptr;
  }
}

std::vector<WeightInFormat> QuantSchemes::weights_of(int bits) const {
  std::vector<WeightInFormat> weights;
  for (const Member& m : members_)
    if (const auto& w = m.scheme->spec->weights; w && w->block_format().bits() == bits)
      weights.push_back({m.parameter, w->block_format()});
  return weights;
}

std::vector<int64_t> QuantSchemes::changes() const {
  std::set<int64_t> steps = {0};
  for (const Member& m : members_) steps.insert(m.begin);
  for (const Member& m : members_)
    if (m.freezing) steps.insert(static_cast<int64_t>(m.freezing->schedule.begin));
  for (const QuantSpan& span : spans_) {
    if (span.calibration > 0) steps.insert({span.begin, span.quantizes()});
    if (span.end < INT64_MAX) steps.insert(span.end);
  }
  return {steps.begin(), steps.end()};
}

std::vector<std::string> QuantSchemes::timeline(int64_t total_steps) const {
  const auto at = [&](int64_t step) {
    return fmt::format("step {}", step) + (step_tokens_ > 0 && step <= INT64_MAX / step_tokens_
                                               ? fmt::format(" ({} tokens)", step * step_tokens_)
                                               : "");
  };
  std::vector<std::string> lines;
  for (size_t g = 0; g < specs_.size(); ++g) {
    const QuantSpan& span = spans_[g];
    const auto members = std::count_if(members_.begin(), members_.end(),
                                       [&](const Member& m) { return m.scheme->group == g; });
    const std::vector<int> order = layers_in_order(g);
    const auto layers = static_cast<int64_t>(order.size());
    std::string line = fmt::format("quant.{}: {} matrices of {} layer{} are quantized from {} on", g, members,
                                   layers, layers == 1 ? "" : "s", at(span.quantizes()));
    if (span.calibration > 0) line += fmt::format(", calibrated from {} on", at(span.begin));
    if (span.end < INT64_MAX) line += fmt::format(", until {}", at(span.end));
    if (span.anneal > 0) {
      line += ", one layer after another:";
      for (int64_t i = 0; i < layers; ++i)
        line += fmt::format("{} layer {} from step {}", i == 0 ? "" : ",", order[static_cast<size_t>(i)],
                            span.joins(i, layers));
    }
    if (specs_[g].freeze)
      line += fmt::format(", and weights far from another code stand still from {} on",
                          at(freezes_from(specs_[g], step_tokens_)));
    const int64_t last = span.joins(layers - 1, layers);
    if (span.quantizes() >= total_steps)
      line += fmt::format("; the run ends before that, after step {}", total_steps - 1);
    else if (last >= total_steps)
      line += fmt::format("; the run ends before all of them are, after step {}", total_steps - 1);
    lines.push_back(line);
  }
  return lines;
}

}  // namespace osprey
