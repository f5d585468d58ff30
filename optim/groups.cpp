#include "optim/groups.h"

#include "framework/config/glob.h"
#include "framework/config/reader.h"
#include "framework/finetune/targets.h"
#include "framework/quant/step_sizes.h"
#include "optim/registry.h"

namespace osprey {

void OptimizerGroupSpec::fields(Fields& f) {
  f("match", match,
    "pattern over parameter names: * any characters, ? one, {a,b} alternatives; first match wins");
  f.choice("kind", kind, {{"adamw", Kind::adamw}, {"muon", Kind::muon}},
           "adamw for any parameter, muon for hidden matrices");
  f("learning_rate", learning_rate, "peak rate; the schedule multiplies it", positive());
  f("weight_decay", weight_decay, "decoupled: each step takes learning_rate * weight_decay of the weight",
    at_least(0));
  f.when(kind == Kind::adamw, "kind is adamw", [&] {
    f("betas", betas, "decay of the first and second moment", between(0, 1));
    f("eps", eps,
      "added to the root of the bias-corrected second moment (of the plain one with finetune.reference)",
      positive());
    f.choice(
        "moments", moments,
        {{"fp32", MomentFormat::fp32}, {"bf16", MomentFormat::bf16}, {"int8", MomentFormat::int8}},
        "how both moments are stored: 8, 4 or 2 bytes a parameter; bf16 is rounded by chance, int8 has a scale "
        "for every 256 (2110.02861)");
    f.rule(betas.size() == 2 && betas[0] < 1 && betas[1] < 1, "betas", "must be two numbers below 1");
  });
  f.when(kind == Kind::muon, "kind is muon", [&] {
    f("momentum", momentum, "decay of the gradient sum", between(0, 1));
    f.rule(momentum < 1, "momentum", "must be below 1");
    f("nesterov", nesterov, "look one momentum step ahead");
    f.choice("newton_schulz", newton_schulz,
             {{"polar_express", NewtonSchulz::polar_express}, {"keller", NewtonSchulz::keller}},
             "polynomials of the orthogonalisation: singular values end in [0.85, 1.14] (polar_express) or "
             "[0.68, 1.13] (keller)");
    f.when(newton_schulz == NewtonSchulz::keller, "newton_schulz is keller", [&] {
      f("ns_steps", ns_steps, "Newton-Schulz iterations (polar_express has exactly five)", between(1, 20));
    });
    f.choice(
        "scale", scale,
        {{"match_rms_adamw", MuonScale::match_rms_adamw},
         {"keller", MuonScale::keller},
         {"spectral", MuonScale::spectral}},
        "length of a step on an (out, in) matrix: 0.2 sqrt(max(out, in)), for learning rates like adamw's; "
        "sqrt(max(1, out/in)) or sqrt(out/in), for rates near 0.02");
  });
}

namespace {

// One error with all that is wrong: a recipe is repaired in one round.
struct Problems {
  std::vector<std::string> lines;
  size_t count = 0;
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    if (++count <= 20) lines.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  void raise() const {
    if (count == 0) return;
    std::string text;
    for (const std::string& line : lines) text += (text.empty() ? "" : "\n  ") + line;
    if (count > lines.size()) text += fmt::format("\n  and {} more", count - lines.size());
    fail("optim", "{}", text);
  }
};

std::string name_list(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 8; ++i) text += (i ? ", " : "") + names[i];
  return names.size() > 8 ? text + fmt::format(" and {} more", names.size() - 8) : text;
}

/// The names with every layer number as `*`, each once: what a pattern may match, short enough for a message.
std::vector<std::string> kinds_of(const std::vector<std::string>& names) {
  std::vector<std::string> kinds;
  for (const std::string& name : names) {
    const size_t digits = name.find_first_of("0123456789");
    const size_t end = std::min(name.find('.', digits), name.size());
    const std::string kind =
        name.starts_with("layers.") && digits == 7 ? "layers.*" + name.substr(end) : name;
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
  }
  return kinds;
}

bool embedding_like(const std::string& name) { return name == "embed.weight" || name == "head.weight"; }

}  // namespace

GroupAssignment assign_groups(std::span<const OptimizerGroupSpec> groups,
                              std::span<const NamedShape> parameters) {
  Problems problems;
  GroupAssignment result;
  result.group.assign(parameters.size(), -1);
  std::vector<std::string> names;
  for (const NamedShape& p : parameters) names.push_back(p.name);
  if (groups.empty())
    problems.add(
        "the list is empty; add an entry such as {{match: \"*\", kind: adamw, learning_rate: 1e-3}}");

  for (size_t g = 0; g < groups.size(); ++g) {
    const OptimizerGroupSpec& spec = groups[g];
    size_t matched = 0, taken = 0;
    std::vector<std::string> vectors, decayed_steps;
    try {
      const Glob glob(spec.match);
      for (size_t i = 0; i < parameters.size(); ++i) {
        if (!glob.matches(names[i])) continue;
        ++matched;
        if (result.group[i] >= 0) continue;
        result.group[i] = static_cast<int>(g);
        ++taken;
        if (is_step_size(names[i]) && spec.weight_decay > 0) decayed_steps.push_back(names[i]);
        if (spec.kind != OptimizerGroupSpec::Kind::muon) continue;
        if (parameters[i].shape.rank != 2)
          vectors.push_back(names[i] + " " + parameters[i].shape.str());
        else if (embedding_like(names[i]))
          result.warnings.push_back(
              fmt::format("optim.{} trains {} by muon; embedding and head are usually left to "
                          "adamw, and orthogonalising them is slow",
                          g, names[i]));
      }
    } catch (const Error& e) {
      problems.add("optim.{}: {}", g, e.what());
      continue;
    }
    if (matched == 0) {
      const std::string near = nearest(spec.match, names);
      problems.add(
          "optim.{}: \"{}\" matches no parameter{}", g, spec.match,
          near.empty() ? "; there are " + name_list(kinds_of(names)) : "; did you mean " + near + "?");
    } else if (taken == 0) {
      problems.add("optim.{}: all {} parameters that \"{}\" matches are taken by earlier entries; move it up",
                   g, matched, spec.match);
    }
    if (!decayed_steps.empty())
      result.warnings.push_back(fmt::format(
          "optim.{} takes weight_decay from learnt step sizes, {}; an entry with match: \"*_step\", weight_decay: 0 "
          "and a learning_rate far below the size of a step belongs before it",
          g, name_list(decayed_steps)));
    if (!vectors.empty())
      problems.add(
          "optim.{}: muon orthogonalises matrices and cannot train {}; add an adamw entry for them before "
          "this one",
          g, name_list(vectors));
  }
  std::vector<std::string> orphans;
  for (size_t i = 0; i < parameters.size(); ++i)
    if (result.group[i] < 0) orphans.push_back(names[i]);
  if (!orphans.empty())
    problems.add("no entry matches {}; end the list with match: \"*\"", name_list(orphans));
  problems.raise();
  return result;
}

OptimizerGroups::OptimizerGroups(std::span<const OptimizerGroupSpec> groups, const ParamStore& params,
                                 const FinetuneSpec& finetune) {
  std::vector<NamedShape> shapes;
  for (const auto& p : params.all()) shapes.push_back({p->name, p->shape});
  GroupAssignment assignment = assign_groups(groups, shapes);
  warnings_ = std::move(assignment.warnings);
  for (const OptimizerGroupSpec& spec : groups) {
    optimizers_.push_back(make_optimizer(spec, finetune));
    in_subspaces_.push_back(make_subspace_optimizer(spec, finetune));
    scaling_.push_back(make_scaling_optimizer(spec, finetune));
  }
  if (finetune.scales_gradients())
    for (const Parameter* p : target_matrices(finetune, params)) scaled_.insert(p->name);
  for (size_t i = 0; i < shapes.size(); ++i)
    group_[shapes[i].name] = static_cast<size_t>(assignment.group[i]);
}

const Optimizer& OptimizerGroups::of(const Parameter& parameter) const {
  const auto found = group_.find(parameter.name);
  require(found != group_.end(), "optim", "{} was declared after the optimizer groups were formed",
          parameter.name);
  const bool scaled = scaled_.contains(parameter.name);
  if (!parameter.subspace && !scaled) return *optimizers_[found->second];
  const auto& optimizer = (scaled ? scaling_ : in_subspaces_)[found->second];
  require(optimizer != nullptr, "optim.kind", "{} is trained {}, which {} cannot; give it to adamw",
          parameter.name, scaled ? "by finetune.method: apollo" : "in a subspace",
          optimizers_[found->second]->kind());
  return *optimizer;
}

}  // namespace osprey
