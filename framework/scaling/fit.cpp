#include "framework/scaling/fit.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "framework/config/reader.h"
#include "framework/scaling/lbfgs.h"
#include "framework/scaling/stage.h"
#include "framework/scaling/words.h"
#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

using scaling::Centre;
using scaling::Stage;
using Vector = std::vector<double>;

/// The sum of Huber losses of a stage as a function of its free parameters, in centred coordinates.
class StageObjective {
 public:
  StageObjective(const Law& law, const Stage& stage, const Vector& theta)
      : law_(law),
        stage_(stage),
        centres_(scaling::centres_of(law, stage)),
        theta_(theta),
        gradient_(theta.size()) {
    for (const LawPoint& p : stage.points) log_targets_.push_back(std::log(p.target));
  }

  double operator()(std::span<const double> x, std::span<double> out) {
    set(x);
    std::fill(out.begin(), out.end(), 0.0);
    double sum = 0;
    for (size_t i = 0; i < stage_.points.size(); ++i) {
      const double r = law_.log_prediction(theta_, stage_.points[i], gradient_) - log_targets_[i];
      const bool small = std::abs(r) <= huber_delta;
      sum += small ? 0.5 * r * r : huber_delta * (std::abs(r) - 0.5 * huber_delta);
      for (const Centre& c : centres_) gradient_[c.source] += c.factor * gradient_[c.target];
      const double slope = small ? r : std::copysign(huber_delta, r);
      for (size_t j = 0; j < stage_.free.size(); ++j) out[j] += slope * gradient_[stage_.free[j]];
    }
    return sum;
  }

  /// theta of all parameters, for these free ones.
  const Vector& set(std::span<const double> x) {
    for (size_t j = 0; j < stage_.free.size(); ++j) theta_[stage_.free[j]] = x[j];
    for (const Centre& c : centres_) theta_[c.target] += c.factor * theta_[c.source];
    return theta_;
  }
  /// The free ones of theta.
  Vector centred(Vector theta) const {
    for (const Centre& c : centres_) theta[c.target] -= c.factor * theta[c.source];
    Vector x;
    for (size_t i : stage_.free) x.push_back(theta[i]);
    return x;
  }

 private:
  const Law& law_;
  const Stage& stage_;
  std::vector<Centre> centres_;
  Vector theta_, gradient_, log_targets_;
};

/// Where searches begin, in centred coordinates: exponents on a grid, and constants such that the terms are
/// so large a share of the median target in the middle of the points.
std::vector<Vector> starts_of(const Law& law, const Stage& stage, const Vector& theta) {
  Vector targets;
  for (const LawPoint& p : stage.points) targets.push_back(p.target);
  std::nth_element(targets.begin(), targets.begin() + static_cast<std::ptrdiff_t>(targets.size() / 2),
                   targets.end());
  const double middle = std::log(targets[targets.size() / 2]);
  std::vector<Vector> starts;
  const auto add = [&](const std::map<std::string, double>& values) {
    Vector x;
    for (size_t i : stage.free) {
      const auto at = values.find(law.parameters()[i].family);
      x.push_back(at == values.end() ? 0 : at->second);
    }
    if (std::find(starts.begin(), starts.end(), x) == starts.end()) starts.push_back(std::move(x));
  };
  if (law.kind() == Law::Kind::qat) {
    for (const double n : {0.1, 0.4})
      for (const double d : {0.05, 0.2})
        for (const double g : {0.3, 1.0}) add({{"k", middle}, {"gN", n}, {"gD", d}, {"gG", g}});
    return starts;
  }
  if (stage.group > 0) {
    for (const double n : {-1.5, -0.5, 0.0, 0.5})
      for (const double d : {-1.5, -0.5, 0.0, 0.5}) add({{"effN", n}, {"effD", d}});
    return starts;
  }
  std::vector<double> gammas{1};
  if (law.kind() == Law::Kind::quartet) {
    const size_t gamma = law.index("gamma");
    const bool free = std::find(stage.free.begin(), stage.free.end(), gamma) != stage.free.end();
    gammas = free ? std::vector<double>{1, 0.5, 0.25} : std::vector<double>{theta[gamma]};
  }
  const double shares[][2] = {{0.1, 0.1}, {0.3, 0.3}, {0.4, 0.1}, {0.1, 0.4}, {0.6, 0.3}, {0.45, 0.45}};
  for (const auto& [size, tokens] : shares)
    for (const double alpha : {0.1, 0.3, 0.6, 1.2})
      for (const double beta : {0.1, 0.3, 0.6, 1.2})
        for (const double gamma : gammas) {
          const double both = (middle + std::log(size + tokens)) / gamma;
          add({{"A", both + std::log(size / (size + tokens))},
               {"B", both + std::log(tokens / (size + tokens))},
               {"E", middle + std::log(1 - size - tokens)},
               {"alpha", alpha},
               {"beta", beta},
               {"gamma", gamma}});
        }
  return starts;
}

/// Minima of a stage, best first: from each start a little way, from the best of those to the end.
std::vector<Minimum> minima(StageObjective& objective, const std::vector<Vector>& starts) {
  const Objective f = [&](std::span<const double> x, std::span<double> g) { return objective(x, g); };
  const auto better = [](const Minimum& x, const Minimum& y) { return x.value < y.value; };
  std::vector<Minimum> found;
  for (const Vector& start : starts)
    if (Minimum m = minimize(f, start, 40); std::isfinite(m.value)) found.push_back(std::move(m));
  require(!found.empty(), "scaling", "the law has no finite value at any start; check the values of --fix");
  std::stable_sort(found.begin(), found.end(), better);
  found.resize(std::min<size_t>(found.size(), 8));
  for (Minimum& m : found) m = minimize(f, m.x, 1000);
  std::stable_sort(found.begin(), found.end(), better);
  found.resize(std::min<size_t>(found.size(), 4));
  return found;
}

void require_determined(const std::string& why) {
  if (!why.empty()) fail("scaling", "{}", why);
}

/// Solves every stage. Afterwards `begin` holds, per stage, where searches on resamples of the points begin.
Vector solve(const Law& law, const std::vector<Stage>& stages, Vector theta,
             std::vector<std::vector<Vector>>& begin) {
  for (const Stage& stage : stages) require_determined(too_little(law, stage));
  for (const Stage& stage : stages) {
    begin.emplace_back();
    if (stage.free.empty()) continue;
    StageObjective objective(law, stage, theta);
    const std::vector<Minimum> found = minima(objective, starts_of(law, stage, theta));
    for (const Minimum& m : found) begin.back().push_back(objective.set(m.x));
    theta = begin.back().front();
    require_determined(undetermined(law, stage, theta));
  }
  return theta;
}

/// The points of a stage drawn again with replacement, as many of each group.
std::vector<LawPoint> drawn(const std::vector<LawPoint>& points, uint64_t seed, uint64_t& draws) {
  static const uint64_t stream = stream_of("scaling bootstrap");
  std::map<size_t, std::vector<const LawPoint*>> groups;
  for (const LawPoint& p : points) groups[p.group].push_back(&p);
  std::vector<LawPoint> out;
  for (const auto& [group, members] : groups)
    for (size_t i = 0; i < members.size(); ++i)
      out.push_back(*members[random_u64(seed, stream, draws++) % members.size()]);
  return out;
}

/// theta of one resample.
Vector resampled(const Law& law, const std::vector<Stage>& stages, Vector theta,
                 const std::vector<std::vector<Vector>>& begin, uint64_t seed, uint64_t& draws) {
  constexpr int most_tries = 100;
  for (size_t s = 0; s < stages.size(); ++s) {
    if (stages[s].free.empty()) continue;
    Stage stage = stages[s];
    int tries = 0;
    do {
      require(++tries <= most_tries, "scaling",
              "{} runs are too few to draw resamples from that hold enough different ones, so there are no "
              "intervals; add runs, or do without intervals by --bootstrap 0",
              stages[s].points.size());
      stage.points = drawn(stages[s].points, seed, draws);
    } while (!too_little(law, stage).empty());
    StageObjective objective(law, stage, theta);
    const Objective f = [&](std::span<const double> x, std::span<double> g) { return objective(x, g); };
    Minimum best{{}, INFINITY, 0};
    for (const Vector& from : begin[s])
      if (Minimum m = minimize(f, objective.centred(from)); best.x.empty() || m.value < best.value)
        best = std::move(m);
    theta = objective.set(best.x);
  }
  return theta;
}

double percentile(const Vector& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(at), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// Applies options.fixed to theta. Returns which parameters it holds.
std::vector<char> fix(const Law& law, const FitOptions& options, Vector& theta) {
  std::vector<char> fixed(theta.size(), 0);
  std::vector<std::string> names;
  for (const LawParameter& p : law.parameters()) {
    names.push_back(p.name);
    if (p.family != p.name && std::find(names.begin(), names.end(), p.family) == names.end())
      names.push_back(p.family);
  }
  for (const auto& [name, value] : options.fixed) {
    bool found = false;
    for (size_t i = 0; i < theta.size(); ++i) {
      const LawParameter& p = law.parameters()[i];
      if (p.name != name && p.family != name) continue;
      theta[i] = p.inner(value);
      fixed[i] = 1;
      found = true;
    }
    const std::string close = nearest(name, names);
    require(found, "scaling", "the law {} has no parameter {} to fix{}; there are {}", law.name(), name,
            close.empty() ? "" : ", did you mean " + close + "?", scaling::joined(names));
  }
  return fixed;
}

HeldOut hold_out(const Law& law, const std::vector<LawPoint>& points, const std::vector<char>& fixed,
                 const Vector& theta) {
  std::vector<double> work;
  for (const LawPoint& p : points) work.push_back(p.parameters * p.tokens);
  Vector sorted = work;
  std::sort(sorted.begin(), sorted.end());
  const double least = sorted[sorted.size() - (sorted.size() + 7) / 8];
  std::vector<LawPoint> known, held;
  for (size_t i = 0; i < points.size(); ++i) (work[i] >= least ? held : known).push_back(points[i]);
  HeldOut out;
  for (const LawPoint& p : held) out.runs.push_back(p.run);
  Vector fitted;
  try {
    std::vector<std::vector<Vector>> begin;
    fitted = solve(law, scaling::stages_of(law, known, fixed), theta, begin);
  } catch (const Error& error) {
    const std::string text = error.what();
    out.why_not = text.substr(std::min(text.size(), text.find("] ") + 2));
    return out;
  }
  for (const LawPoint& p : held) {
    const double predicted = law.prediction(fitted, p);
    out.mean_log_error += std::abs(std::log(predicted / p.target)) / static_cast<double>(held.size());
    out.mean_error += std::abs(predicted - p.target) / static_cast<double>(held.size());
  }
  return out;
}

}  // namespace

Fit fit_law(const Law& law, const std::vector<LawPoint>& points, const FitOptions& options) {
  Vector start(law.parameters().size(), 0);
  const std::vector<char> fixed = fix(law, options, start);
  for (const LawPoint& p : points) {
    require(p.group < law.groups().size() && p.parameters > 0 && p.tokens > 0 && p.target > 0, "scaling",
            "the run {} has N {}, D {} and target {}; all must be above 0", p.run, p.parameters, p.tokens,
            p.target);
    require(law.kind() != Law::Kind::qat || !p.block || *p.block > 1, "scaling",
            "the run {} has G = {}; the law needs G above 1", p.run, p.block.value_or(0));
  }
  const std::vector<Stage> stages = scaling::stages_of(law, points, fixed);
  std::vector<std::vector<Vector>> begin;
  Fit fit{law, solve(law, stages, start, begin), {}, points, {}, 0, 0, options.bootstrap, options.seed, {}};

  std::vector<Vector> samples(start.size());  // inner values, by parameter
  uint64_t draws = 0;
  for (int64_t b = 0; b < options.bootstrap; ++b) {
    const Vector theta = resampled(law, stages, start, begin, options.seed, draws);
    for (size_t i = 0; i < theta.size(); ++i) samples[i].push_back(theta[i]);
  }
  for (size_t i = 0; i < start.size(); ++i) {
    const LawParameter& p = law.parameters()[i];
    FittedParameter out{p.name, p.natural(fit.theta[i]), {}, {}, fixed[i] != 0};
    if (!fixed[i] && options.bootstrap > 0) {
      std::sort(samples[i].begin(), samples[i].end());
      out.low = p.natural(percentile(samples[i], 0.025));
      out.high = p.natural(percentile(samples[i], 0.975));
    }
    fit.parameters.push_back(std::move(out));
  }
  double squares = 0;
  for (const LawPoint& p : points) {
    const double predicted = law.log_prediction(fit.theta, p, {}),
                 r = std::abs(predicted - std::log(p.target));
    fit.predictions.push_back(std::exp(predicted));
    squares += r * r;
    fit.objective += r <= huber_delta ? 0.5 * r * r : huber_delta * (r - 0.5 * huber_delta);
  }
  fit.rms_log_residual = std::sqrt(squares / static_cast<double>(points.size()));
  fit.held_out = hold_out(law, points, fixed, start);
  return fit;
}

std::string fit_json(const Fit& fit) {
  using Json = nlohmann::ordered_json;
  Json parameters = Json::object(), points = Json::array(), held;
  for (const FittedParameter& p : fit.parameters) {
    Json& out = parameters[p.name];
    out["value"] = p.value;
    if (p.low) out["interval_95"] = {*p.low, *p.high};
    out["fixed"] = p.fixed;
  }
  for (size_t i = 0; i < fit.points.size(); ++i) {
    const LawPoint& p = fit.points[i];
    Json out{{"run", p.run}, {"parameters", p.parameters}, {"tokens", p.tokens}};
    if (p.block) out["block"] = *p.block;
    if (const std::string& group = fit.law.groups()[p.group]; !group.empty()) out["group"] = group;
    if (fit.law.kind() == Law::Kind::qat) out["without_quantization"] = p.reference;
    out["measured"] = p.target;
    out["predicted"] = fit.predictions[i];
    points.push_back(std::move(out));
  }
  held["method"] = "fitted without the runs of largest N*D, an eighth of all, and compared with them";
  held["runs"] = fit.held_out.runs;
  if (fit.held_out.why_not) {
    held["not_determined"] = *fit.held_out.why_not;
  } else {
    held["mean_log_error"] = fit.held_out.mean_log_error;
    held["mean_error_nats"] = fit.held_out.mean_error;
  }
  const Json all{{"law", fit.law.name()},      {"formula", fit.law.formula()},
                 {"parameters", parameters},   {"huber_delta", huber_delta},
                 {"objective", fit.objective}, {"rms_log_residual", fit.rms_log_residual},
                 {"held_out", held},           {"bootstrap", fit.bootstrap},
                 {"seed", fit.seed},           {"points", points}};
  return all.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace osprey
