#pragma once
// Fitting a scaling law to measured runs, and saying how far the result can be trusted.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "framework/scaling/law.h"

namespace osprey {

struct FitOptions {
  std::map<std::string, double> fixed;  // natural values, by name or by family ("effD": of all schemes)
  int64_t bootstrap = 200;              // resamples for the intervals; 0: none
  uint64_t seed = 0;                    // of the resamples
};

struct FittedParameter {
  std::string name;
  double value = 0;                 // natural
  std::optional<double> low, high;  // 2.5 and 97.5 percent of the resamples
  bool fixed = false;
};

/// How well a law fitted without the largest runs predicts them.
struct HeldOut {
  std::vector<std::string> runs;       // those with the largest N times D: an eighth of all, at least one
  std::optional<std::string> why_not;  // the rest does not determine the law
  double mean_log_error = 0;           // mean |ln(predicted / measured)|
  double mean_error = 0;               // mean |predicted - measured|, nats
};

struct Fit {
  Law law;
  std::vector<double> theta;  // inner values
  std::vector<FittedParameter> parameters;
  std::vector<LawPoint> points;
  std::vector<double> predictions;  // nats, of each point
  double objective = 0;             // the sum of Huber losses
  double rms_log_residual = 0;
  int64_t bootstrap = 0;
  uint64_t seed = 0;
  HeldOut held_out;
};

/// Where a residual of ln L turns from noise that is squared to an outlier that is not.
inline constexpr double huber_delta = 1e-3;
/// No two runs are taken to agree better than this (ln L): the least residual scatter in standard errors.
inline constexpr double least_scatter = 1e-4;
/// Standard errors above which a parameter counts as not determined: of the logarithm of a constant (a factor
/// of e), and of an exponent (as large as exponents are).
inline constexpr double most_log_error = 1, most_exponent_error = 0.25;

/// The parameters that minimize the sum over points of Huber(ln predicted - ln measured) with huber_delta,
/// by L-BFGS from a grid of starts. quartet first fits its law to the runs without quantization and then,
/// with that held, effN and effD of each scheme to its own runs.
/// Intervals: points are drawn again with replacement, within each group, as often as options.bootstrap
/// says.
/// Numerics: a function of points and options alone, also bit for bit.
/// Errors: a fixed parameter that does not exist or cannot have its value; points that do not determine a
/// parameter, which is named with what would: too few different N, D, D/N or G, too few points, or a
/// parameter whose standard error at the minimum is above most_log_error or most_exponent_error.
Fit fit_law(const Law& law, const std::vector<LawPoint>& points, const FitOptions& options);

/// The fit as JSON: law, formula, parameters with intervals, points with predictions, held-out error.
std::string fit_json(const Fit& fit);

}  // namespace osprey
