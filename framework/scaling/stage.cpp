#include "framework/scaling/stage.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "framework/scaling/fit.h"
#include "framework/scaling/grid.h"
#include "framework/scaling/words.h"
#include "kernels/core/check.h"

namespace osprey::scaling {
namespace {

using Of = double (*)(const LawPoint&);

double size_of(const LawPoint& p) { return p.parameters; }
double tokens_of(const LawPoint& p) { return p.tokens; }
double block_of(const LawPoint& p) { return p.block.value_or(0); }
double ratio_of(const LawPoint& p) { return p.tokens / p.parameters; }

bool is_free(const Law& law, const Stage& stage, std::string_view family) {
  return std::any_of(stage.free.begin(), stage.free.end(),
                     [&](size_t i) { return law.parameters()[i].family == family; });
}

double mean_log(const std::vector<LawPoint>& points, Of of) {
  double sum = 0;
  for (const LawPoint& p : points) sum += std::log(of(p));
  return sum / static_cast<double>(points.size());
}

std::string number(double value) {
  return value >= 1000 ? short_count(std::llround(value)) : fmt::format("{:.4g}", value);
}

/// "3 values of N, 1.2M to 90M".
std::string seen(const std::vector<LawPoint>& points, const char* letter, Of of) {
  std::set<double> values;
  for (const LawPoint& p : points) values.insert(of(p));
  if (values.empty()) return "no runs";
  if (values.size() == 1) return fmt::format("one value of {}, {}", letter, number(*values.begin()));
  return fmt::format("{} values of {}, {} to {}", values.size(), letter, number(*values.begin()),
                     number(*values.rbegin()));
}

size_t count(const std::vector<LawPoint>& points, Of of) {
  std::set<double> values;
  for (const LawPoint& p : points) values.insert(of(p));
  return values.size();
}

double spread(const std::vector<LawPoint>& points, Of of) {
  double least = INFINITY, most = 0;
  for (const LawPoint& p : points) least = std::min(least, of(p)), most = std::max(most, of(p));
  return points.empty() ? 1 : most / least;
}

/// Different models, lengths and blocks of a group.
size_t cells(const std::vector<LawPoint>& points) {
  std::set<std::tuple<size_t, double, double, double>> all;
  for (const LawPoint& p : points) all.emplace(p.group, p.parameters, p.tokens, p.block.value_or(0));
  return all.size();
}

std::string few(const std::string& parameter, const std::string& has, size_t needed, const char* letter,
                const char* what) {
  return fmt::format(
      "{} needs runs of at least {} different {}, and these have {}; add runs of {}, or give it with "
      "--fix {}=VALUE",
      parameter, needed, letter, has, what, parameter);
}

/// What would tell a parameter.
std::string remedy(const std::string& family) {
  if (family == "A" || family == "alpha" || family == "gN") return "runs over a wider range of N";
  if (family == "B" || family == "beta" || family == "gD") return "runs over a wider range of D";
  if (family == "E") return "runs of larger N and D, whose loss comes near E,";
  if (family == "gamma") return "runs over a wider range of both N and D";
  if (family == "gG") return "runs of other G";
  if (family == "k") return "pairs at other N, D and G";
  if (family == "rho") return "runs of this optimizer at other N";
  return "runs of this scheme over a wider range of N and of D/N";
}

std::string few_for_losses(const Law& law, const Stage& stage) {
  const auto free = [&](const char* name) { return is_free(law, stage, name); };
  const size_t sizes = free("A") + free("alpha"), lengths = free("B") + free("beta");
  const size_t more = free("E");  // the offset of both terms
  const auto& points = stage.points;
  if (sizes > 0 && count(points, size_of) < sizes + more)
    return few(free("alpha") ? "alpha" : "A", seen(points, "N", size_of), sizes + more, "N", "other sizes");
  if (lengths > 0 && count(points, tokens_of) < lengths + more)
    return few(free("beta") ? "beta" : "B", seen(points, "D", tokens_of), lengths + more, "D",
               "other lengths");
  if (free("alpha") && free("beta") && spread(points, ratio_of) < 1.1)
    return few("beta", seen(points, "D/N", ratio_of), 2, "D/N", "the same sizes with other lengths");
  for (size_t i : stage.free) {
    const LawParameter& p = law.parameters()[i];
    if (p.family != "rho") continue;
    std::vector<LawPoint> own;
    std::copy_if(points.begin(), points.end(), std::back_inserter(own),
                 [&](const LawPoint& q) { return law.size_factor(q.group) == i; });
    if (cells(own) < 2) return few(p.name, seen(own, "N", size_of), 2, "N or D", "this optimizer");
  }
  return "";
}

std::string few_for_qat(const Law& law, const Stage& stage) {
  const struct {
    const char *name, *letter, *what;
    Of of;
  } exponents[] = {{"gN", "N", "other sizes, in pairs with and without quantization", size_of},
                   {"gD", "D", "other lengths, in pairs with and without quantization", tokens_of},
                   {"gG", "G", "other block sizes", block_of}};
  for (const auto& e : exponents)
    if (is_free(law, stage, e.name) && count(stage.points, e.of) < 2)
      return few(e.name, seen(stage.points, e.letter, e.of), 2, e.letter, e.what);
  return "";
}

std::string few_for_scheme(const Law& law, const Stage& stage) {
  const std::string& first = law.parameters()[stage.free.front()].name;
  if (stage.free.size() < 2) return "";
  const std::string cure =
      "; add runs of this scheme, or give one of the two with --fix effD=1 where only the forward "
      "pass is quantized, --fix effN=1 where only the backward pass is";
  if (count(stage.points, size_of) < 2)
    return fmt::format("{} and effD cannot be told apart with {}{}", first, seen(stage.points, "N", size_of),
                       cure);
  if (count(stage.points, tokens_of) < 2)
    return fmt::format("{} and effD cannot be told apart with {}{}", first,
                       seen(stage.points, "D", tokens_of), cure);
  if (spread(stage.points, ratio_of) < 2)
    return fmt::format("{} and effD cannot be told apart where D/N differs by less than a factor of 2 ({}){}",
                       first, seen(stage.points, "D/N", ratio_of), cure);
  return "";
}

/// A symmetric matrix, row by row, into eigenvalues (returned) and the columns of `vectors`, by Jacobi
/// rotations.
std::vector<double> eigen(std::vector<double> m, size_t n, std::vector<double>& vectors) {
  vectors.assign(n * n, 0);
  for (size_t i = 0; i < n; ++i) vectors[i * n + i] = 1;
  for (int sweep = 0; sweep < 100; ++sweep) {
    double off = 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) off += m[i * n + j] * m[i * n + j];
    if (off < 1e-300) break;
    for (size_t p = 0; p < n; ++p)
      for (size_t q = p + 1; q < n; ++q) {
        if (m[p * n + q] == 0) continue;
        const double theta = (m[q * n + q] - m[p * n + p]) / (2 * m[p * n + q]);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        const auto rotate = [&](double& x, double& y) {
          const double old = x;
          x = c * old - s * y;
          y = s * old + c * y;
        };
        for (size_t i = 0; i < n; ++i) rotate(m[i * n + p], m[i * n + q]);
        for (size_t i = 0; i < n; ++i) rotate(m[p * n + i], m[q * n + i]);
        for (size_t i = 0; i < n; ++i) rotate(vectors[i * n + p], vectors[i * n + q]);
      }
  }
  std::vector<double> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = m[i * n + i];
  return values;
}

/// A robust standard deviation: outliers do not count, nor do as many of the smallest residuals as there are
/// free parameters, since a fit that minimizes absolute values goes right through that many points.
double scatter(std::vector<double> residuals, size_t free) {
  for (double& r : residuals) r = std::abs(r);
  std::sort(residuals.begin(), residuals.end());
  return std::max(least_scatter, 1.4826 * residuals[free + (residuals.size() - free) / 2]);
}

}  // namespace

std::vector<Stage> stages_of(const Law& law, const std::vector<LawPoint>& points,
                             const std::vector<char>& fixed) {
  const bool apart = law.kind() == Law::Kind::quartet;
  std::vector<Stage> stages(apart ? law.groups().size() : 1);
  for (size_t g = 0; g < stages.size(); ++g) {
    stages[g].group = g;
    for (const LawPoint& p : points)
      if (!apart || p.group == g) stages[g].points.push_back(p);
    for (size_t i = 0; i < law.parameters().size(); ++i) {
      bool factor = false, own = false;
      for (size_t h = 0; apart && h < law.groups().size(); ++h) {
        const bool of_h = law.size_factor(h) == i || law.token_factor(h) == i;
        factor = factor || of_h;
        own = own || (of_h && h == g);
      }
      if (!fixed[i] && (g == 0 ? !factor : own)) stages[g].free.push_back(i);
    }
  }
  return stages;
}

std::vector<Centre> centres_of(const Law& law, const Stage& stage) {
  std::vector<Centre> all;
  const auto add = [&](const char* target, const char* source, double factor) {
    if (is_free(law, stage, target)) all.push_back({law.index(target), law.index(source), factor});
  };
  if (stage.points.empty()) return all;
  if (law.kind() == Law::Kind::qat) {
    double blocks = 0;
    for (const LawPoint& p : stage.points) blocks += log_log_block(p);
    add("k", "gN", mean_log(stage.points, size_of));
    add("k", "gD", -mean_log(stage.points, tokens_of));
    add("k", "gG", -blocks / static_cast<double>(stage.points.size()));
  } else {
    add("A", "alpha", mean_log(stage.points, size_of));
    add("B", "beta", mean_log(stage.points, tokens_of));
  }
  return all;
}

std::string too_little(const Law& law, const Stage& stage) {
  if (stage.free.empty()) return "";
  std::string why = law.kind() == Law::Kind::qat ? few_for_qat(law, stage)
                    : stage.group > 0            ? few_for_scheme(law, stage)
                                                 : few_for_losses(law, stage);
  if (!why.empty()) return why;
  const size_t have = cells(stage.points), need = stage.free.size() + 1;
  if (have >= need) return "";
  std::vector<std::string> names;
  for (size_t i : stage.free) names.push_back(law.parameters()[i].name);
  return fmt::format(
      "{} {} free parameters ({}) need at least {} different runs, and there are {}; add {} more, or "
      "give a parameter with --fix NAME=VALUE",
      law.name(), names.size(), joined(names), need, have, need - have);
}

std::string undetermined(const Law& law, const Stage& stage, const std::vector<double>& theta) {
  const size_t n = stage.free.size();
  if (n == 0) return "";
  const std::vector<Centre> centres = centres_of(law, stage);
  std::vector<double> square(n * n, 0), gradient(theta.size()), residuals;
  for (const LawPoint& p : stage.points) {
    residuals.push_back(law.log_prediction(theta, p, gradient) - std::log(p.target));
    for (const Centre& c : centres) gradient[c.source] += c.factor * gradient[c.target];
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < n; ++j) square[i * n + j] += gradient[stage.free[i]] * gradient[stage.free[j]];
  }
  // Columns of length 1, so that only directions decide whether the matrix is singular.
  std::vector<double> length(n);
  for (size_t i = 0; i < n; ++i) length[i] = std::sqrt(square[i * n + i]);
  const double longest = *std::max_element(length.begin(), length.end());
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j)
      square[i * n + j] /= std::max(length[i], 1e-12 * longest) * std::max(length[j], 1e-12 * longest);
  std::vector<double> vectors;
  const std::vector<double> values = eigen(square, n, vectors);
  const double sigma = scatter(residuals, n);
  size_t worst = 0;
  double most = 0, excess = 0;  // the standard error that is furthest beyond what is still taken for a result
  for (size_t i = 0; i < n; ++i) {
    double variance = 0;
    for (size_t k = 0; k < n; ++k)
      variance += vectors[i * n + k] * vectors[i * n + k] / std::max(values[k], 1e-13);
    const double error = sigma * std::sqrt(variance) / std::max(length[i], 1e-12 * longest);
    const bool logarithm = law.parameters()[stage.free[i]].logarithmic;
    const double beyond = error / (logarithm ? most_log_error : most_exponent_error);
    if (beyond > excess) excess = beyond, most = error, worst = i;
  }
  if (!(excess > 1)) return "";
  const LawParameter& p = law.parameters()[stage.free[worst]];
  const std::string size = !p.logarithmic ? fmt::format("{:.3g}", most)
                           : most > 20    ? std::string("more than a factor of 1e8")
                                          : fmt::format("a factor of {:.3g}", std::exp(most));
  return fmt::format(
      "the {} runs ({}; {}) leave {} open: its standard error is {}; add {} or give it with --fix "
      "{}=VALUE",
      stage.points.size(), seen(stage.points, "N", size_of), seen(stage.points, "D", tokens_of), p.name, size,
      remedy(p.family), p.family);
}

}  // namespace osprey::scaling
