#pragma once
// Runs that follow a law whose constants are known.

#include <cmath>
#include <string>
#include <vector>

#include "framework/scaling/law.h"
#include "kernels/core/random.h"

namespace osprey::test {

/// Inner values of a law from natural ones, in the order of its parameters.
inline std::vector<double> theta_of(const Law& law, const std::vector<double>& natural) {
  std::vector<double> theta;
  for (size_t i = 0; i < natural.size(); ++i) theta.push_back(law.parameters()[i].inner(natural[i]));
  return theta;
}

/// Targets that the law gives, times exp(noise * a standard normal).
inline void measure(const Law& law, const std::vector<double>& natural, std::vector<LawPoint>& points,
                    double noise = 0, uint64_t seed = 1) {
  const std::vector<double> theta = theta_of(law, natural);
  uint64_t index = 0;
  for (LawPoint& p : points) {
    p.target =
        law.prediction(theta, p) * std::exp(noise * static_cast<double>(random_normal(seed, 7, index++)));
    p.run = "run" + std::to_string(index);
  }
}

/// Every size with every length; of one group.
inline std::vector<LawPoint> grid(const std::vector<double>& sizes, const std::vector<double>& tokens,
                                  size_t group = 0) {
  std::vector<LawPoint> points;
  for (const double n : sizes)
    for (const double d : tokens) {
      LawPoint p;
      p.parameters = n, p.tokens = d, p.group = group;
      points.push_back(p);
    }
  return points;
}

inline void append(std::vector<LawPoint>& to, const std::vector<LawPoint>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// Constants of the papers (docs/scaling.md), and grids like theirs.
inline const std::vector<double> hoffmann{406.4, 410.7, 1.69, 0.34, 0.28};  // A B E alpha beta
inline const std::vector<double> chen{0.1582, 0.2186, 0.0745, 0.7779};      // k gN gD gG of W4A4
inline const std::vector<double> quartet_base{1.52e5, 5.25e5, 1.35, 0.589, 0.544, 0.274};
inline const std::vector<double> many_sizes{3e7, 1e8, 3e8, 1e9, 3e9, 1e10};
inline const std::vector<double> many_tokens{1e9, 5e9, 2e10, 1e11, 4e11};

inline std::vector<LawPoint> qat_grid() {
  std::vector<LawPoint> points;
  for (const double g : {32.0, 64.0, 128.0, 256.0})
    for (LawPoint p : grid({74e6, 145e6, 297e6, 595e6}, {10e9, 20e9, 50e9, 100e9})) {
      p.block = g;
      points.push_back(p);
    }
  return points;
}

}  // namespace osprey::test
