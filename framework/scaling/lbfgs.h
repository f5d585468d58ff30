#pragma once
// Minimization of a function of a few variables.

#include <functional>
#include <span>
#include <vector>

namespace osprey {

/// Value at x; writes the gradient. Where it cannot be computed the value is not finite.
using Objective = std::function<double(std::span<const double> x, std::span<double> gradient)>;

struct Minimum {
  std::vector<double> x;
  double value = 0;
  int iterations = 0;
};

/// L-BFGS from `start`, with a line search to weak Wolfe conditions by bisection, which also gets along with
/// the kinks of a sum of Huber losses. Ends when five steps in a row gain next to nothing, when no step
/// gains at all, or after `most_iterations`.
/// Numerics: deterministic. A start at which the objective is not finite is returned as it is.
/// Reference: Nocedal and Wright, Numerical Optimization, algorithm 7.4; Lewis and Overton, Nonsmooth
/// optimization via quasi-Newton methods (2013), algorithm 2.6.
Minimum minimize(const Objective& objective, std::vector<double> start, int most_iterations = 500);

}  // namespace osprey
