#pragma once
// Scaling laws as vectors of parameters: what loss a model of N parameters reaches after D tokens.
// docs/scaling.md has the formulas with their sources, and what each is for.

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace osprey {

/// One measurement that a law is to explain.
struct LawPoint {
  std::string run;
  double parameters = 0;        // N
  double tokens = 0;            // D
  std::optional<double> block;  // G, of quantized runs
  size_t group = 0;             // of Law::groups()
  double target = 0;            // nats: the loss, or what quantization adds to it (qat)
  double reference = 0;         // nats: of qat, the loss without quantization; else 0
};

/// A parameter vector holds each constant by its logarithm and each exponent as it stands ("inner values");
/// people see constants ("natural values").
struct LawParameter {
  std::string name;    // "A", or "effN[mxfp4/mxfp4/bf16 block 32]"
  std::string family;  // the name without its bracket
  bool logarithmic = false;

  double natural(double inner) const;
  /// Errors: throws for a constant that is not above 0, and for anything not finite.
  double inner(double natural) const;
};

class Law {
 public:
  enum class Kind { chinchilla, qat, quartet, per_optimizer };

  /// L = A/N^alpha + B/D^beta + E.
  /// Reference: Hoffmann et al., arXiv 2203.15556, Approach 3.
  static Law chinchilla();
  /// delta = k D^gD (log2 G)^gG / N^gN, what quantization-aware training adds to the loss.
  /// Reference: Chen et al., arXiv 2505.14302.
  static Law qat();
  /// L = (A/(N effN)^alpha + B/(D effD)^beta)^gamma + E. Group 0 are runs without quantization, where effN
  /// and effD are 1; groups 1.. are `schemes`, with an effN and an effD each.
  /// Reference: Castro et al., arXiv 2505.14669.
  static Law quartet(const std::vector<std::string>& schemes);
  /// L = A/(N rho)^alpha + B/D^beta + E with a rho for each optimizer; the first is the reference, with rho
  /// 1.
  /// Reference: arXiv 2509.23500.
  static Law per_optimizer(const std::vector<std::string>& optimizers);

  Kind kind() const { return kind_; }
  std::string_view name() const;
  std::string_view formula() const;
  const std::vector<LawParameter>& parameters() const { return parameters_; }
  /// What points are grouped by: schemes or optimizers; one nameless group for the other laws.
  const std::vector<std::string>& groups() const { return groups_; }
  /// Index of a parameter.
  /// Errors: throws when there is none.
  size_t index(std::string_view name) const;
  /// Indices of effN and effD, or of rho; empty for the group that has none.
  std::optional<size_t> size_factor(size_t group) const { return size_factor_[group]; }
  std::optional<size_t> token_factor(size_t group) const { return token_factor_[group]; }

  /// Natural logarithm of what the law says of a point's target. `gradient`, unless empty, receives its
  /// derivatives by each inner value.
  /// Shapes: theta and gradient as parameters().
  /// Numerics: sums of powers go through logsumexp, so no inner value overflows.
  double log_prediction(std::span<const double> theta, const LawPoint& point,
                        std::span<double> gradient) const;
  /// The same, in nats.
  double prediction(std::span<const double> theta, const LawPoint& point) const;

 private:
  explicit Law(Kind kind) : kind_(kind) {}
  size_t add(const std::string& family, bool logarithmic, const std::string& group = "");
  static Law of_losses(Kind kind, const std::vector<std::string>& groups);

  Kind kind_;
  std::vector<LawParameter> parameters_;
  std::vector<std::string> groups_;
  std::vector<std::optional<size_t>> size_factor_, token_factor_;
  std::optional<size_t> gamma_;
};

/// ln(log2 G), the logarithm that the qat law multiplies gG with; 0 for a point without G.
double log_log_block(const LawPoint& point);

}  // namespace osprey
