#include "kernels/round_to_nearest.h"

#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/row.h"
#include "kernels/numerics/clip.h"
#include "kernels/numerics/round_to_nearest.h"

namespace osprey::cuda {

namespace {

constexpr int threads = 256;

enum class Method : int64_t { symmetric, asymmetric, searched };

template <class T>
struct Rounding {
  T* y;
  const T* x;
  int64_t y_stride, x_stride, cols, bits;
  Method method;
};

struct Shared {
  double sums[threads / warp_size];
  float low[threads / warp_size], high[threads / warp_size];
  int finite[threads / warp_size];
};

struct Range {
  float smallest, largest;  // zero included
  bool finite;
};

/// Of the whole row, the same in all threads.
template <class T>
__device__ Range range_of(const T* x, int64_t cols, Shared& s) {
  float low = 0, high = 0;
  bool finite = true;
  for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
    const float v = to_float(x[c]);
    finite = finite && is_finite(v);
    low = fminf(low, v);
    high = fmaxf(high, v);
  }
  low = -warp_max(-low);
  high = warp_max(high);
  finite = __all_sync(full_warp, finite);
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  if (threadIdx.x % warp_size == 0) {
    s.low[warp] = low;
    s.high[warp] = high;
    s.finite[warp] = finite;
  }
  __syncthreads();
  Range r{0, 0, true};
  for (int w = 0; w < threads / warp_size; ++w) {
    r.smallest = fminf(r.smallest, s.low[w]);
    r.largest = fmaxf(r.largest, s.high[w]);
    r.finite = r.finite && s.finite[w] != 0;
  }
  return r;
}

template <class T>
__device__ RoundingGrid searched(const T* x, int64_t cols, float largest, int bits, Shared& s) {
  RoundingGrid best;
  double least = INFINITY;
  for (int i = 0; i < clip_candidates; ++i) {
    const RoundingGrid g = symmetric_grid(clip_candidate(largest, i), bits);
    double error = 0;
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) error += clip_error(g, to_float(x[c]));
    error = block_sum(error, s.sums);
    if (error < least) {
      least = error;
      best = g;
    }
  }
  return best;
}

/// A block a row. It is read again for every candidate of the search, from the caches.
template <class T>
__global__ void round_to_nearest_kernel(Rounding<T> a) {
  Shared& s = block_shared<Shared>();
  const T* x = a.x + blockIdx.x * a.x_stride;
  T* y = a.y + blockIdx.x * a.y_stride;
  const Range r = range_of(x, a.cols, s);
  if (!r.finite) {
    for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) y[c] = Convert<T>::from(NAN);
    return;
  }
  const float absolute = fmaxf(-r.smallest, r.largest);
  const int bits = static_cast<int>(a.bits);
  const RoundingGrid g = a.method == Method::asymmetric ? asymmetric_grid(r.smallest, r.largest, bits)
                         : a.method == Method::searched ? searched(x, a.cols, absolute, bits, s)
                                                        : symmetric_grid(absolute, bits);
  for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x)
    y[c] = Convert<T>::from(round_to_grid(g, to_float(x[c])));
}

template <class T>
void run(const Queue& queue, const kernels::RoundToNearest& a) {
  const Rounding<T> args{.y = a.y.as<T>(),
                         .x = a.x.as<T>(),
                         .y_stride = a.y.row_stride(),
                         .x_stride = a.x.row_stride(),
                         .cols = a.x.cols(),
                         .bits = a.bits,
                         .method = a.grid == kernels::RowGrid::asymmetric ? Method::asymmetric
                                   : a.clip == kernels::ClipSearch::osp   ? Method::searched
                                                                          : Method::symmetric};
  launch("round_to_nearest", queue,
         {.blocks = static_cast<unsigned>(a.x.rows()), .threads = threads, .shared_bytes = sizeof(Shared)},
         round_to_nearest_kernel<T>, args);
}

}  // namespace

void round_to_nearest(const Queue& queue, const kernels::RoundToNearest& a) {
  if (a.x.dtype == DType::bf16)
    run<bf16>(queue, a);
  else
    run<float>(queue, a);
}

}  // namespace osprey::cuda
