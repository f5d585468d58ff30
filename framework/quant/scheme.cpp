#include "framework/quant/scheme.h"

#include <set>

#include "framework/config/glob.h"
#include "framework/eval/round_to_nearest.h"

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

void QuantOperandSpec::fields(Fields& f) {
  f("format", format, ("one of " + format_names()).c_str());
  f.rule(is_format(format), "format", fmt::format("'{}' is no format; there are {}", format, format_names()));
  f.choice(
      "scale", scale,
      {{"floor", ScaleRule::floor},
       {"even", ScaleRule::even},
       {"ceil", ScaleRule::ceil},
       {"rceil", ScaleRule::rceil},
       {"mse", ScaleRule::mse},
       {"four_over_six", ScaleRule::four_over_six}},
      "how a block's scale follows from its values. Powers of two: floor (OCP, clips), even (floor of the "
      "largest value rounded to the element's digits), ceil and rceil (never clip), mse (from the standard "
      "deviation, least error for normal values; clips). four_over_six: nvfp4 only, the better of two scales");
  f.choice("rounding", rounding, {{"nearest_even", Kind::nearest_even}, {"stochastic", Kind::stochastic}},
           "forward rounds to nearest. For gradients: stochastic is unbiased where the scale does not clip, "
           "with ceil and rceil");
  f.rule(scale != ScaleRule::four_over_six || format == "nvfp4", "scale", "four_over_six is for nvfp4");
  f.rule(scale != ScaleRule::mse || format == "mxfp4", "scale", "mse is for mxfp4");
}

void QuantGroupSpec::apply(Preset p) {
  applied_ = p;
  weights.reset();
  activations.reset();
  gradients.reset();
  rotation = backward_rotation = 0;
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
      gradients = operand("nvfp4", ScaleRule::even, Kind::stochastic);
      backward_rotation = 16;
      return;
    case Preset::mxint8:
      weights = activations = gradients = operand("mxint8");
      return;
    case Preset::weight_only:
      weights = operand("mxfp4");
      return;
  }
}

void QuantGroupSpec::fields(Fields& f) {
  f("match", match,
    "pattern over parameter names, as in optim; first match wins, what nothing matches stays as it is");
  f.choice(
      "preset", preset,
      {{"none", Preset::none},
       {"qat_mxfp4_w4a4", Preset::qat_mxfp4_w4a4},
       {"quartet", Preset::quartet},
       {"nvfp4", Preset::nvfp4},
       {"mxint8", Preset::mxint8},
       {"weight_only", Preset::weight_only}},
      "what the keys below default to. qat_mxfp4_w4a4: forward in mxfp4, rotated, backward in full; quartet: "
      "forward and backward in mxfp4 (Castro et al. 2505.14669); nvfp4: both in nvfp4, 4/6 scales (Quartet II, "
      "2601.22813, forward; NVIDIA 2509.25149, stochastic gradients); mxint8: all in mxint8 (2510.25602); "
      "weight_only: weights in mxfp4");
  if (preset != applied_) apply(preset);
  f.section("weights", weights, "weights in the forward product; null: as they are");
  f.section("activations", activations, "inputs in the forward product; null: as they are");
  f.section("gradients", gradients,
            "all four operands of the two backward products; null: products of dequantized operands");
  f("rotation", rotation,
    "randomised Hadamard of this many neighbours before weights and activations are rounded: 0 (none), 16, 32, 64 "
    "or 128");
  f("backward_rotation", backward_rotation, "the same for the operands of the backward products");
  f.choice("gradient_mask", gradient_mask,
           {{"straight_through", GradientMask::straight_through}, {"unclipped", GradientMask::unclipped}},
           "unclipped: no gradient passes where a value was clipped (QuEST's trust mask)");
  f("first_step", first_step, "unquantized before this 0-based step", at_least(0));
  f("end_step", end_step, "unquantized again from this step on; null: to the end", at_least(1));

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
  f.rule(rotation == 0 || (weights && activations), "rotation",
         "turns both operands of a product, so weights and activations need a format");
  f.rule(backward_rotation == 0 || gradients, "backward_rotation", "is for gradients, which have no format");
  f.rule(!gradients || (weights && activations), "gradients",
         "need weights and activations that have a format: backward quantizes what forward quantized again");
  f.rule(!end_step || *end_step > first_step, "end_step", "must be after first_step");
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

QuantSchemes::QuantSchemes(std::span<const QuantGroupSpec> groups, const ParamStore& params, uint64_t seed)
    : specs_(groups.begin(), groups.end()) {
  std::string problems;
  size_t count = 0;
  const auto problem = [&](const std::string& line) {
    if (++count <= most_problems_shown) problems += (problems.empty() ? "" : "\n  ") + line;
  };
  schemes_.reserve(specs_.size());
  std::vector<Glob> globs;
  for (size_t g = 0; g < specs_.size(); ++g) {
    schemes_.push_back({.spec = &specs_[g], .group = g, .seed = seed});
    globs.emplace_back(specs_[g].match);
  }
  std::vector<int64_t> taken(specs_.size(), 0), matched(specs_.size(), 0);
  for (const auto& p : params.all()) {
    const QuantScheme* scheme = nullptr;
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
    members_.push_back({p.get(), scheme});
  }
  for (size_t g = 0; g < specs_.size(); ++g) {
    if (matched[g] == 0) problem(fmt::format("'{}' matches no parameter", specs_[g].match));
    if (matched[g] > 0 && taken[g] == 0)
      problem(fmt::format("'{}' comes too late: groups before it take all it matches", specs_[g].match));
  }
  if (count > most_problems_shown) problems += fmt::format("\n  and {} more", count - most_problems_shown);
  require(problems.empty(), "quant", "{}", problems);
}

QuantSchemes::~QuantSchemes() {
  for (const Member& m : members_) {
    m.parameter->scheme = nullptr;
    m.parameter->quantized.reset();  // kept by scheme
  }
}

void QuantSchemes::activate(int64_t step) const {
  for (const Member& m : members_) {
    const QuantGroupSpec& s = *m.scheme->spec;
    const bool active = step >= s.first_step && step < s.end_step.value_or(INT64_MAX);
    m.parameter->scheme = active ? m.scheme : nullptr;
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
  for (const QuantGroupSpec& s : specs_) {
    steps.insert(s.first_step);
    if (s.end_step) steps.insert(*s.end_step);
  }
  return {steps.begin(), steps.end()};
}

}  // namespace osprey
