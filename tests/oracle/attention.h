#pragma once
// Causal attention row by row, with every variant, in plain double loops; shares no code with the
// kernels. Rows are (b, t); heads lie side by side in a row.

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace osprey::oracle {

struct Attention {
  size_t batch = 1, tokens = 1, heads = 1, kv_heads = 1, head_size = 8;
  double scale = 1.0;
  bool clipped = false;
  double zeta = 1.0, gamma = 0.0;
  enum class Gate { none, headwise, elementwise } gate = Gate::none;
  std::vector<int> document_start = {};  // empty: 0 everywhere
  size_t window = 0;                     // keys that a row sees; 0: all

  struct Inputs {
    std::vector<double> q, k, v, sink, gate;  // sink and gate may be empty
  };
  struct Outputs {
    std::vector<double> o, lse;  // lse by (b, h, t)
  };

  double sigmoid(double x) const { return 1.0 / (1.0 + std::exp(-x)); }
  size_t first(size_t b, size_t t) const {
    const size_t near = window > 0 && t + 1 > window ? t + 1 - window : 0;
    if (document_start.empty()) return near;
    return std::max(near,
                    static_cast<size_t>(std::clamp(document_start[b * tokens + t], 0, static_cast<int>(t))));
  }
  double open(const Inputs& in, size_t row, size_t h, size_t d) const {
    if (gate == Gate::none) return 1.0;
    return sigmoid(gate == Gate::headwise ? in.gate[row * heads + h]
                                          : in.gate[(row * heads + h) * head_size + d]);
  }
  double& at(std::vector<double>& m, size_t row, size_t h, size_t count, size_t d) const {
    return m[(row * count + h) * head_size + d];
  }

  /// Probabilities of row (b, h, t), by key; and the row's log of the sum.
  std::vector<double> row(const Inputs& in, size_t b, size_t h, size_t t, double* lse) const {
    const size_t g = h / (heads / kv_heads);
    std::vector<double> p(tokens, 0.0);
    double most = in.sink.empty() ? -INFINITY : in.sink[h];
    for (size_t j = first(b, t); j <= t; ++j) {
      double s = 0;
      for (size_t d = 0; d < head_size; ++d)
        s += in.q[((b * tokens + t) * heads + h) * head_size + d] *
             in.k[((b * tokens + j) * kv_heads + g) * head_size + d];
      p[j] = s * scale;
      most = std::max(most, p[j]);
    }
    double sum = in.sink.empty() ? 0.0 : std::exp(in.sink[h] - most);
    for (size_t j = first(b, t); j <= t; ++j) sum += std::exp(p[j] - most);
    *lse = most + std::log(sum);
    for (size_t j = first(b, t); j <= t; ++j) p[j] = std::exp(p[j] - *lse);
    return p;
  }
  double clip(double p) const { return clipped ? std::clamp((zeta - gamma) * p + gamma, 0.0, 1.0) : p; }
  double slope(double p) const {
    if (!clipped) return 1.0;
    const double stretched = (zeta - gamma) * p + gamma;
    return stretched > 0.0 && stretched < 1.0 ? zeta - gamma : 0.0;
  }

  Outputs forward(const Inputs& in) const {
    Outputs out{std::vector<double>(in.q.size(), 0.0), std::vector<double>(batch * heads * tokens)};
    for (size_t b = 0; b < batch; ++b)
      for (size_t h = 0; h < heads; ++h)
        for (size_t t = 0; t < tokens; ++t) {
          const size_t g = h / (heads / kv_heads), r = b * tokens + t;
          const std::vector<double> p = row(in, b, h, t, &out.lse[(b * heads + h) * tokens + t]);
          for (size_t j = first(b, t); j <= t; ++j)
            for (size_t d = 0; d < head_size; ++d)
              at(out.o, r, h, heads, d) +=
                  clip(p[j]) * in.v[((b * tokens + j) * kv_heads + g) * head_size + d];
          for (size_t d = 0; d < head_size; ++d) at(out.o, r, h, heads, d) *= open(in, r, h, d);
        }
    return out;
  }

  /// Gradients of sum(o * dy).
  Inputs backward(const Inputs& in, const std::vector<double>& dy) const {
    Inputs grad;
    grad.q.assign(in.q.size(), 0.0);
    grad.k.assign(in.k.size(), 0.0);
    grad.v.assign(in.v.size(), 0.0);
    grad.sink.assign(in.sink.size(), 0.0);
    grad.gate.assign(in.gate.size(), 0.0);
    for (size_t b = 0; b < batch; ++b)
      for (size_t h = 0; h < heads; ++h)
        for (size_t t = 0; t < tokens; ++t) {
          const size_t g = h / (heads / kv_heads), r = b * tokens + t;
          double lse;
          const std::vector<double> p = row(in, b, h, t, &lse);
          std::vector<double> dp(tokens, 0.0), plain(head_size, 0.0), d_plain(head_size);
          for (size_t d = 0; d < head_size; ++d)
            d_plain[d] = dy[(r * heads + h) * head_size + d] * open(in, r, h, d);
          double term = 0;
          for (size_t j = first(b, t); j <= t; ++j) {
            for (size_t d = 0; d < head_size; ++d) {
              const double value = in.v[((b * tokens + j) * kv_heads + g) * head_size + d];
              plain[d] += clip(p[j]) * value;
              dp[j] += d_plain[d] * value;
              at(grad.v, b * tokens + j, g, kv_heads, d) += clip(p[j]) * d_plain[d];
            }
            term += p[j] * slope(p[j]) * dp[j];
          }
          for (size_t j = first(b, t); j <= t; ++j) {
            const double ds = p[j] * (slope(p[j]) * dp[j] - term) * scale;
            for (size_t d = 0; d < head_size; ++d) {
              at(grad.q, r, h, heads, d) += ds * in.k[((b * tokens + j) * kv_heads + g) * head_size + d];
              at(grad.k, b * tokens + j, g, kv_heads, d) += ds * in.q[(r * heads + h) * head_size + d];
            }
          }
          if (!in.sink.empty()) grad.sink[h] -= std::exp(in.sink[h] - lse) * term;
          for (size_t d = 0; d < head_size && gate != Gate::none; ++d) {
            const double w = open(in, r, h, d);
            grad.gate[gate == Gate::headwise ? r * heads + h : (r * heads + h) * head_size + d] +=
                dy[(r * heads + h) * head_size + d] * plain[d] * w * (1 - w);
          }
        }
    return grad;
  }
};

}  // namespace osprey::oracle
