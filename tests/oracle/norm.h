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

struct NormGradients {
  std::vector<double> dx, dweight, dbias;
};

/// LayerNorm takes the mean from x, RMSNorm nothing.
enum class Centre { mean, zero };
/// One weight stands for all columns.
inline NormGradients norm_backward(const std::vector<double>& dy, const std::vector<double>& x,
                                   const std::vector<double>& weight, size_t cols, double eps,
                                   Centre centre) {
  NormGradients g{std::vector<double>(x.size()), std::vector<double>(weight.size()),
                  std::vector<double>(cols)};
  const double n = static_cast<double>(cols);
  for (size_t r = 0; r * cols < x.size(); ++r) {
    const double *xr = &x[r * cols], *d = &dy[r * cols];
    double mean = 0, variance = 0, sum = 0, dot = 0;
    for (size_t c = 0; c < cols && centre == Centre::mean; ++c) mean += xr[c] / n;
    for (size_t c = 0; c < cols; ++c) variance += std::pow(xr[c] - mean, 2) / n;
    const double deviation = std::sqrt(variance + eps);
    const auto w = [&](size_t c) { return weight.size() == 1 ? size_t{0} : c; };
    for (size_t c = 0; c < cols; ++c) {
      const double xhat = (xr[c] - mean) / deviation;
      g.dweight[w(c)] += d[c] * xhat;
      g.dbias[c] += d[c];
      dot += d[c] * weight[w(c)] * xhat / n;
      if (centre == Centre::mean) sum += d[c] * weight[w(c)] / n;
    }
    for (size_t c = 0; c < cols; ++c)
      g.dx[r * cols + c] = (d[c] * weight[w(c)] - sum - (xr[c] - mean) / deviation * dot) / deviation;
  }
  return g;
}

}  // namespace osprey::oracle
