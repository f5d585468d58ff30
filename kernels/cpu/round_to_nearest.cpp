#include "kernels/round_to_nearest.h"

#include <cmath>

namespace osprey::cpu {

namespace {

struct Grid {
  float scale = 0, zero = 0, low = 0, high = 0;
  float round(float x) const {
    if (scale == 0) return 0;
    const float q = std::nearbyint(x / scale) + zero;
    return (std::fmin(std::fmax(q, low), high) - zero) * scale;
  }
};

Grid symmetric(float largest, int bits) {
  const float top = static_cast<float>((1 << (bits - 1)) - 1);
  return {.scale = largest / top, .zero = 0, .low = -top - 1, .high = top};
}

Grid asymmetric(float smallest, float largest, int bits) {
  const float top = static_cast<float>((1 << bits) - 1), scale = (largest - smallest) / top;
  return {.scale = scale, .zero = scale == 0 ? 0 : std::nearbyint(-smallest / scale), .low = 0, .high = top};
}

template <class T>
Grid searched(const T* x, int64_t n, float largest, int bits) {
  Grid best;
  double least = INFINITY;
  for (int i = 0; i < 80; ++i) {
    const Grid g = symmetric(largest * (1.0f - static_cast<float>(i) / 100.0f), bits);
    double error = 0;
    for (int64_t c = 0; c < n; ++c)
      error += std::pow(static_cast<double>(std::fabs(g.round(to_float(x[c])) - to_float(x[c]))), 2.4);
    if (error < least) {
      least = error;
      best = g;
    }
  }
  return best;
}

template <class T>
void round_row(T* y, const T* x, int64_t n, const kernels::RoundToNearest& a) {
  float smallest = 0, largest = 0;
  bool finite = true;
  for (int64_t c = 0; c < n; ++c) {
    const float v = to_float(x[c]);
    finite = finite && std::isfinite(v);
    smallest = std::fmin(smallest, v);
    largest = std::fmax(largest, v);
  }
  if (!finite) {
    for (int64_t c = 0; c < n; ++c) y[c] = Convert<T>().from(NAN);
    return;
  }
  const float absolute = std::fmax(-smallest, largest);
  const Grid g = a.grid == kernels::RowGrid::asymmetric ? asymmetric(smallest, largest, a.bits)
                 : a.clip == kernels::ClipSearch::osp   ? searched(x, n, absolute, a.bits)
                                                        : symmetric(absolute, a.bits);
  for (int64_t c = 0; c < n; ++c) y[c] = Convert<T>().from(g.round(to_float(x[c])));
}

}  // namespace

void round_to_nearest(const Queue& queue, const kernels::RoundToNearest& a) {
  parallel_for(queue, a.x.rows(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (a.x.dtype == DType::bf16)
        round_row(a.y.as<bf16>() + r * a.y.row_stride(), a.x.as<bf16>() + r * a.x.row_stride(), a.x.cols(),
                  a);
      else
        round_row(a.y.as<float>() + r * a.y.row_stride(), a.x.as<float>() + r * a.x.row_stride(), a.x.cols(),
                  a);
    }
  });
}

}  // namespace osprey::cpu
