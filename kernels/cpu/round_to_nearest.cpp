#include "kernels/round_to_nearest.h"

#include <cmath>

#include "kernels/numerics/round_to_nearest.h"

namespace osprey::cpu {

namespace {

template <class T>
RoundingGrid searched(const T* x, int64_t n, float largest, int bits) {
  RoundingGrid best;
  double least = INFINITY;
  for (int i = 0; i < clip_candidates; ++i) {
    const RoundingGrid g = symmetric_grid(clip_candidate(largest, i), bits);
    double error = 0;
    for (int64_t c = 0; c < n; ++c) error += clip_error(g, to_float(x[c]));
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
  const RoundingGrid g = a.grid == kernels::RowGrid::asymmetric ? asymmetric_grid(smallest, largest, a.bits)
                         : a.clip == kernels::ClipSearch::osp   ? searched(x, n, absolute, a.bits)
                                                                : symmetric_grid(absolute, a.bits);
  for (int64_t c = 0; c < n; ++c) y[c] = Convert<T>().from(round_to_grid(g, to_float(x[c])));
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
