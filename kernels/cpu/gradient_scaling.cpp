#include "kernels/gradient_scaling.h"

#include <cmath>
#include <vector>

#include "kernels/numerics/gradient_scaling.h"
#include "kernels/numerics/normal.h"

namespace osprey::cpu {

using namespace kernels;

namespace {

double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

/// Sums of squares of the rows, or of the columns, of a matrix.
std::vector<double> channel_squares(const Queue& queue, const Tensor& t, Channels channels) {
  const int64_t rows = t.shape[0], cols = t.shape[1];
  const float* x = t.as<float>();
  std::vector<double> sums(static_cast<size_t>(channels == Channels::columns ? cols : rows));
  if (channels == Channels::columns) {
    parallel_for(queue, cols, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = begin; c < end; ++c) sums[static_cast<size_t>(c)] += square(x[r * cols + c]);
    });
    return sums;
  }
  parallel_for(queue, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < cols; ++c) sums[static_cast<size_t>(r)] += square(x[r * cols + c]);
  });
  return sums;
}

double sum(const std::vector<double>& x) {
  double total = 0;
  for (const double v : x) total += v;
  return total;
}

}  // namespace

void draw_normal(const Queue& queue, const DrawNormal& a) {
  const auto step = static_cast<int64_t>(a.control.as<double>()[step_number]);
  const int64_t n = a.y.numel();
  const auto first = static_cast<uint64_t>(step / a.refresh_every * n);
  float* y = a.y.as<float>();
  parallel_for(queue, n, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      y[i] = static_cast<float>(a.deviation *
                                normal_of(philox(a.seed, a.stream, first + static_cast<uint64_t>(i))));
  });
}

void scaling_factors(const Queue& queue, const ScalingFactors& a) {
  if (a.control.as<double>()[step_apply] == 0) return;
  const std::vector<double> d = channel_squares(queue, a.direction, a.channels),
                            r = channel_squares(queue, a.projected, a.channels),
                            g = channel_squares(queue, a.gradient, a.channels);
  std::vector<double> factors(static_cast<size_t>(a.factors.numel()));
  double squares = 0;  // of the scaled gradient
  if (a.channels == Channels::whole) {
    factors[0] = channel_factor(sum(d), sum(r));
    squares = factors[0] * factors[0] * sum(g);
  } else {
    for (size_t c = 0; c < factors.size(); ++c) {
      factors[c] = channel_factor(d[c], r[c]);
      squares += factors[c] * factors[c] * g[c];
    }
  }
  float& previous = *a.previous.as<float>();
  const double norm = std::sqrt(squares), limit = growth_limit(norm, previous, a.growth);
  previous = static_cast<float>(limit * norm);
  for (size_t c = 0; c < factors.size(); ++c)
    a.factors.as<float>()[c] = static_cast<float>(limit * factors[c]);
}

void scale_channels(const Queue& queue, const ScaleChannels& a) {
  const int64_t cols = a.x.shape[1];
  const float *x = a.x.as<float>(), *factors = a.factors.as<float>();
  float* y = a.y.as<float>();
  parallel_for(queue, a.x.shape[0], 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float of_row = factors[a.channels == Channels::rows ? r : 0];
      for (int64_t c = 0; c < cols; ++c)
        y[r * cols + c] = x[r * cols + c] * (a.channels == Channels::columns ? factors[c] : of_row);
    }
  });
}

}  // namespace osprey::cpu
