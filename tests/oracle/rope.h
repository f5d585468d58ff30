#pragma once
// RMSNorm of each head and rotary positions, in plain double loops; shares no code with the
// kernels.

#include <cmath>
#include <vector>

namespace osprey::oracle {

/// Heads of `size` values side by side in rows; the first `turned` heads of a row are normalised
/// (if `weight` says so) and turned, the rest pass. weight(h) is the norm weight of head h, or
/// null.
template <class WeightOf>
std::vector<double> rope(std::vector<double> x, size_t cols, size_t turned, size_t size,
                         const std::vector<int>& positions, double theta, double eps,
                         const WeightOf& weight) {
  for (size_t r = 0; r * cols < x.size(); ++r)
    for (size_t h = 0; h < turned; ++h) {
      double* head = &x[r * cols + h * size];
      if (const std::vector<double>* w = weight(h)) {
        double squares = 0;
        for (size_t i = 0; i < size; ++i) squares += head[i] * head[i];
        const double rms = std::sqrt(squares / static_cast<double>(size) + eps);
        for (size_t i = 0; i < size; ++i) head[i] = head[i] / rms * (*w)[i];
      }
      for (size_t i = 0; i < size / 2; ++i) {
        const double angle =
            positions[r] * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(size));
        const double a = head[i], b = head[i + size / 2];
        head[i] = a * std::cos(angle) - b * std::sin(angle);
        head[i + size / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  return x;
}

}  // namespace osprey::oracle
