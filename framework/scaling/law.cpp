#include "framework/scaling/law.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"

namespace osprey {
namespace {

// Where the parameters of every law of losses stand; gamma and factors of groups follow where they exist.
enum Loss : size_t { a, b, e, alpha, beta };
// Those of the qat law.
enum Qat : size_t { k, gN, gD, gG };

double log_sum(double x, double y) {
  const double most = std::max(x, y);
  return std::isinf(most) ? most : most + std::log1p(std::exp(std::min(x, y) - most));
}

}  // namespace

double LawParameter::natural(double inner_value) const {
  return logarithmic ? std::exp(inner_value) : inner_value;
}

double LawParameter::inner(double natural_value) const {
  require(std::isfinite(natural_value) && (!logarithmic || natural_value > 0), "scaling",
          "{} cannot be {}; it is a {}", name, natural_value,
          logarithmic ? "number above 0" : "finite number");
  return logarithmic ? std::log(natural_value) : natural_value;
}

size_t Law::add(const std::string& family, bool logarithmic, const std::string& group) {
  parameters_.push_back({group.empty() ? family : fmt::format("{}[{}]", family, group), family, logarithmic});
  return parameters_.size() - 1;
}

Law Law::of_losses(Kind kind, const std::vector<std::string>& groups) {
  Law law(kind);
  law.groups_ = groups;
  law.size_factor_.resize(groups.size());
  law.token_factor_.resize(groups.size());
  for (const char* constant : {"A", "B", "E"}) law.add(constant, true);
  for (const char* exponent : {"alpha", "beta"}) law.add(exponent, false);
  return law;
}

Law Law::chinchilla() { return of_losses(Kind::chinchilla, {""}); }

Law Law::qat() {
  Law law(Kind::qat);
  law.groups_ = {""};
  law.size_factor_.resize(1);
  law.token_factor_.resize(1);
  law.add("k", true);
  for (const char* exponent : {"gN", "gD", "gG"}) law.add(exponent, false);
  return law;
}

Law Law::quartet(const std::vector<std::string>& schemes) {
  std::vector<std::string> groups{"without quantization"};
  groups.insert(groups.end(), schemes.begin(), schemes.end());
  Law law = of_losses(Kind::quartet, groups);
  law.gamma_ = law.add("gamma", false);
  for (size_t g = 1; g < groups.size(); ++g) {
    law.size_factor_[g] = law.add("effN", true, groups[g]);
    law.token_factor_[g] = law.add("effD", true, groups[g]);
  }
  return law;
}

Law Law::per_optimizer(const std::vector<std::string>& optimizers) {
  require(!optimizers.empty(), "scaling", "the law per optimizer needs one");
  Law law = of_losses(Kind::per_optimizer, optimizers);
  for (size_t g = 1; g < optimizers.size(); ++g) law.size_factor_[g] = law.add("rho", true, optimizers[g]);
  return law;
}

std::string_view Law::name() const {
  switch (kind_) {
    case Kind::chinchilla:
      return "chinchilla";
    case Kind::qat:
      return "qat";
    case Kind::quartet:
      return "quartet";
    case Kind::per_optimizer:
      return "per_optimizer";
  }
  return "";
}

std::string_view Law::formula() const {
  switch (kind_) {
    case Kind::chinchilla:
      return "L = A/N^alpha + B/D^beta + E";
    case Kind::qat:
      return "delta = k D^gD (log2 G)^gG / N^gN";
    case Kind::quartet:
      return "L = (A/(N effN)^alpha + B/(D effD)^beta)^gamma + E";
    case Kind::per_optimizer:
      return "L = A/(N rho)^alpha + B/D^beta + E";
  }
  return "";
}

size_t Law::index(std::string_view wanted) const {
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (parameters_[i].name == wanted) return i;
  fail("scaling", "the law {} has no parameter {}", name(), wanted);
}

double log_log_block(const LawPoint& point) { return point.block ? std::log(std::log2(*point.block)) : 0; }

double Law::log_prediction(std::span<const double> theta, const LawPoint& point,
                           std::span<double> gradient) const {
  if (kind_ == Kind::qat) {
    const double n = std::log(point.parameters), d = std::log(point.tokens), g = log_log_block(point);
    if (!gradient.empty()) gradient[k] = 1, gradient[gN] = -n, gradient[gD] = d, gradient[gG] = g;
    return theta[k] - theta[gN] * n + theta[gD] * d + theta[gG] * g;
  }
  const auto size = size_factor_[point.group], token = token_factor_[point.group];
  const double n = std::log(point.parameters) + (size ? theta[*size] : 0);
  const double d = std::log(point.tokens) + (token ? theta[*token] : 0);
  const double gamma = gamma_ ? theta[*gamma_] : 1;
  const double of_size = theta[a] - theta[alpha] * n, of_tokens = theta[b] - theta[beta] * d;
  const double both = log_sum(of_size, of_tokens), loss = log_sum(gamma * both, theta[e]);
  if (!gradient.empty()) {
    std::fill(gradient.begin(), gradient.end(), 0.0);
    const double reducible = std::exp(gamma * both - loss);
    const double by_size = reducible * gamma * std::exp(of_size - both);
    const double by_tokens = reducible * gamma * std::exp(of_tokens - both);
    gradient[a] = by_size;
    gradient[b] = by_tokens;
    gradient[e] = std::exp(theta[e] - loss);
    gradient[alpha] = -n * by_size;
    gradient[beta] = -d * by_tokens;
    if (gamma_) gradient[*gamma_] = reducible * both;
    if (size) gradient[*size] = -theta[alpha] * by_size;
    if (token) gradient[*token] = -theta[beta] * by_tokens;
  }
  return loss;
}

double Law::prediction(std::span<const double> theta, const LawPoint& point) const {
  return std::exp(log_prediction(theta, point, {}));
}

}  // namespace osprey
