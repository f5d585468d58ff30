#pragma once
// Plain double loops; they share no code with the kernels.

#include <cmath>
#include <vector>

namespace osprey::oracle {

inline std::vector<double> rmsnorm(const std::vector<double>& x, const std::vector<double>& weight,
                                   size_t cols, double eps) {
  std::vector<double> y(x.size());
  for (size_t r = 0; r * cols < x.size(); ++r) {
    double squares = 0;
    for (size_t c = 0; c < cols; ++c) squares += x[r * cols + c] * x[r * cols + c];
    const double rms = std::sqrt(squares / static_cast<double>(cols) + eps);
    for (size_t c = 0; c < cols; ++c)
      y[r * cols + c] = x[r * cols + c] / rms * weight[weight.size() == 1 ? 0 : c];
  }
  return y;
}

inline std::vector<double> layernorm(const std::vector<double>& x, const std::vector<double>& weight,
                                     const std::vector<double>& bias, size_t cols, double eps) {
  std::vector<double> y(x.size());
  for (size_t r = 0; r * cols < x.size(); ++r) {
    double mean = 0, variance = 0;
    for (size_t c = 0; c < cols; ++c) mean += x[r * cols + c] / static_cast<double>(cols);
    for (size_t c = 0; c < cols; ++c)
      variance += std::pow(x[r * cols + c] - mean, 2) / static_cast<double>(cols);
    for (size_t c = 0; c < cols; ++c)
      y[r * cols + c] = (x[r * cols + c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
  }
  return y;
}

}  // namespace osprey::oracle
