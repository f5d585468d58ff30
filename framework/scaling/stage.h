#pragma once
// One minimization of a fit: which parameters are free, over which points; and whether those points determine
// them. Part of fit.cpp.

#include <string>
#include <vector>

#include "framework/scaling/law.h"

namespace osprey::scaling {

struct Stage {
  std::vector<size_t> free;  // parameters
  std::vector<LawPoint> points;
  size_t group = 0;  // quartet: whose factors are free; 0: the law itself
};

/// The stages of a fit, in the order in which they are to be solved. `fixed` says of each parameter whether
/// it is.
std::vector<Stage> stages_of(const Law& law, const std::vector<LawPoint>& points,
                             const std::vector<char>& fixed);

/// A change of coordinates: theta[target] = z[target] + factor * theta[source]. The target is a constant and
/// the source its exponent, so z is the logarithm of a term in the middle of the points, which the exponent
/// hardly moves.
struct Centre {
  size_t target, source;
  double factor;
};
std::vector<Centre> centres_of(const Law& law, const Stage& stage);

/// Why these points cannot determine the stage's free parameters, from counting what differs; empty if they
/// may.
std::string too_little(const Law& law, const Stage& stage);
/// Why they do not at the minimum: from standard errors of z, which are the standard deviation of residuals
/// times the root of the diagonal of (J^T J)^-1. Empty if they do. Shapes: theta as the law's parameters.
std::string undetermined(const Law& law, const Stage& stage, const std::vector<double>& theta);

}  // namespace osprey::scaling
