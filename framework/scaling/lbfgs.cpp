#include "framework/scaling/lbfgs.h"

#include <cmath>
#include <deque>
#include <limits>

namespace osprey {
namespace {

constexpr size_t history = 20;

using Vector = std::vector<double>;

double dot(const Vector& x, const Vector& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

struct Pair {
  Vector step, change;  // of x and of the gradient
  double inverse;       // 1 / (step, change)
};

/// The two-loop recursion: minus the inverse Hessian, as far as the pairs tell it, times the gradient.
Vector direction_of(const std::deque<Pair>& pairs, const Vector& gradient) {
  Vector q = gradient, share(pairs.size());
  for (size_t i = pairs.size(); i-- > 0;) {
    share[i] = pairs[i].inverse * dot(pairs[i].step, q);
    for (size_t j = 0; j < q.size(); ++j) q[j] -= share[i] * pairs[i].change[j];
  }
  if (!pairs.empty()) {
    const Pair& last = pairs.back();
    const double scale = 1 / (last.inverse * dot(last.change, last.change));
    for (double& v : q) v *= scale;
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    const double back = pairs[i].inverse * dot(pairs[i].change, q);
    for (size_t j = 0; j < q.size(); ++j) q[j] += (share[i] - back) * pairs[i].step[j];
  }
  for (double& v : q) v = -v;
  return q;
}

struct Place {
  Vector x, gradient;
  double value = 0;
};

/// A place along `direction` that fulfils the weak Wolfe conditions, or else one that is merely lower.
/// Returns whether there is any.
bool search(const Objective& objective, const Place& from, const Vector& direction, double first, Place& to) {
  constexpr double enough = 1e-4, flat = 0.9;
  const double slope = dot(from.gradient, direction);
  double low = 0, high = std::numeric_limits<double>::infinity(), t = first;
  Place at = from;
  bool found = false;
  for (int tries = 0; tries < 60; ++tries) {
    for (size_t i = 0; i < at.x.size(); ++i) at.x[i] = from.x[i] + t * direction[i];
    at.value = objective(at.x, at.gradient);
    if (!(at.value <= from.value + enough * t * slope)) {
      high = t;
    } else {
      if (at.value < from.value && (!found || at.value <= to.value)) to = at, found = true;
      if (dot(at.gradient, direction) >= flat * slope) return found;
      low = t;
    }
    t = std::isinf(high) ? 2 * low : (low + high) / 2;
  }
  return found;
}

}  // namespace

Minimum minimize(const Objective& objective, Vector start, int most_iterations) {
  Place now{std::move(start), {}, 0};
  now.gradient.resize(now.x.size());
  now.value = objective(now.x, now.gradient);
  std::deque<Pair> pairs;
  int idle = 0, iteration = 0;
  for (; iteration < most_iterations && idle < 5 && std::isfinite(now.value); ++iteration) {
    Vector direction = direction_of(pairs, now.gradient);
    if (!(dot(direction, now.gradient) < 0)) {
      pairs.clear();
      direction = direction_of(pairs, now.gradient);
    }
    const double length = std::sqrt(dot(direction, direction));
    if (!(length > 0) || !std::isfinite(length)) break;
    // Without a Hessian the gradient says nothing about lengths; the variables are logarithms and exponents.
    Place next;
    if (!search(objective, now, direction, pairs.empty() ? 0.1 / length : 1, next)) {
      if (pairs.empty()) break;
      pairs.clear();  // once more along the gradient
      continue;
    }
    Pair pair{Vector(now.x.size()), Vector(now.x.size()), 0};
    for (size_t i = 0; i < now.x.size(); ++i) {
      pair.step[i] = next.x[i] - now.x[i];
      pair.change[i] = next.gradient[i] - now.gradient[i];
    }
    const double curvature = dot(pair.step, pair.change);
    if (curvature > 0 && std::isfinite(1 / curvature)) {
      pair.inverse = 1 / curvature;
      pairs.push_back(std::move(pair));
      if (pairs.size() > history) pairs.pop_front();
    }
    idle = now.value - next.value <= 1e-13 * std::abs(next.value) ? idle + 1 : 0;
    now = std::move(next);
  }
  return {std::move(now.x), now.value, iteration};
}

}  // namespace osprey
