#include "kernels/gradient_scaling.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sums.h"
#include "kernels/numerics/gradient_scaling.h"
#include "kernels/numerics/normal.h"

namespace osprey::cuda {

using kernels::Channels;

namespace {

constexpr int threads = sum_threads;
constexpr int tile_cols = warp_size, tile_rows = threads / tile_cols;

// Eight bytes a member, as in adamw.cu.
struct Normals {
  float* y;
  int64_t count, refresh_every;
  double deviation;
  uint64_t seed, stream;
  const double* control;
};

__global__ void __launch_bounds__(threads) draw(const Normals a) {
  const int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= a.count) return;
  const int64_t step = static_cast<int64_t>(a.control[kernels::step_number]);
  const uint64_t index = static_cast<uint64_t>(step / a.refresh_every * a.count + i);
  a.y[i] = static_cast<float>(a.deviation * normal_of(philox(a.seed, a.stream, index)));
}

struct Matrix {
  const float* x;
  int64_t rows, cols;
  double* squares;  // of its rows or columns
};

__device__ double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

/// A block sums over a row.
__global__ void __launch_bounds__(threads) row_squares(const Matrix m) {
  const float* row = m.x + blockIdx.x * m.cols;
  double total = 0;
  for (int64_t c = threadIdx.x; c < m.cols; c += threads) total += square(row[c]);
  SumShared& shared = block_shared<SumShared>();
  total = block_sum(total, shared.warps);
  if (threadIdx.x == 0) m.squares[blockIdx.x] = total;
}

struct ColumnShared {
  double sums[tile_rows][tile_cols];
};
/// A block sums over 32 columns; thread (i, j) over the rows i, i + 8, ... of column j.
__global__ void __launch_bounds__(threads) column_squares(const Matrix m) {
  const int i = static_cast<int>(threadIdx.x) / tile_cols, j = static_cast<int>(threadIdx.x) % tile_cols;
  const int64_t c = blockIdx.x * int64_t{tile_cols} + j;
  double total = 0;
  if (c < m.cols)
    for (int64_t r = i; r < m.rows; r += tile_rows) total += square(m.x[r * m.cols + c]);
  ColumnShared& shared = block_shared<ColumnShared>();
  shared.sums[i][j] = total;
  __syncthreads();
  if (i > 0 || c >= m.cols) return;
  for (int k = 1; k < tile_rows; ++k) total += shared.sums[k][j];
  m.squares[c] = total;
}

struct Decision {
  float *factors, *previous;
  const double *direction, *projected, *gradient;  // squares of channels
  int64_t direction_channels, gradient_channels;
  int64_t whole;
  double growth;
  const double* control;
};

__device__ double sum_of(const double* x, int64_t count, double* room) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < count; i += sum_final_threads) total += x[i];
  return block_sum(total, room);
}

/// One block.
__global__ void __launch_bounds__(sum_final_threads) decide(const Decision a) {
  if (a.control[kernels::step_apply] == 0) return;
  SumShared& shared = block_shared<SumShared>();
  double squares = 0, factor = 0;
  if (a.whole) {
    factor = channel_factor(sum_of(a.direction, a.direction_channels, shared.warps),
                            sum_of(a.projected, a.direction_channels, shared.warps));
    squares = factor * factor * sum_of(a.gradient, a.gradient_channels, shared.warps);
  } else {
    for (int64_t c = threadIdx.x; c < a.gradient_channels; c += sum_final_threads) {
      const double f = channel_factor(a.direction[c], a.projected[c]);
      squares += f * f * a.gradient[c];
    }
    squares = block_sum(squares, shared.warps);
  }
  const double norm = sqrt(squares), limit = growth_limit(norm, *a.previous, a.growth);
  __syncthreads();  // all have read what was before
  if (threadIdx.x == 0) *a.previous = static_cast<float>(limit * norm);
  if (a.whole) {
    if (threadIdx.x == 0) a.factors[0] = static_cast<float>(limit * factor);
    return;
  }
  for (int64_t c = threadIdx.x; c < a.gradient_channels; c += sum_final_threads)
    a.factors[c] = static_cast<float>(limit * channel_factor(a.direction[c], a.projected[c]));
}

struct Scaling {
  float* y;
  const float *x, *factors;
  int64_t count, cols;
  int64_t by_row, by_column;
};

__global__ void __launch_bounds__(threads) scale(const Scaling a) {
  const int64_t i = blockIdx.x * int64_t{threads} + threadIdx.x;
  if (i >= a.count) return;
  a.y[i] = a.x[i] * a.factors[a.by_row ? i / a.cols : a.by_column ? i % a.cols : 0];
}

unsigned blocks_of(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

int64_t channels_of(const Tensor& t, Channels channels) {
  return channels == Channels::columns ? t.shape[1] : t.shape[0];
}

void channel_squares(const Queue& queue, const Tensor& t, Channels channels, double* squares) {
  const Matrix m{t.as<float>(), t.shape[0], t.shape[1], squares};
  if (channels == Channels::columns)
    launch("scaling_factors", queue,
           {dim3(blocks_of(m.cols, tile_cols)), dim3(threads), sizeof(ColumnShared)}, column_squares, m);
  else
    launch("scaling_factors", queue, {dim3(static_cast<unsigned>(m.rows)), dim3(threads), sizeof(SumShared)},
           row_squares, m);
}

}  // namespace

void draw_normal(const Queue& queue, const kernels::DrawNormal& a) {
  const Normals p{.y = a.y.as<float>(),
                  .count = a.y.numel(),
                  .refresh_every = a.refresh_every,
                  .deviation = a.deviation,
                  .seed = a.seed,
                  .stream = a.stream,
                  .control = a.control.as<double>()};
  launch("draw_normal", queue, {dim3(blocks_of(p.count, threads)), dim3(threads)}, draw, p);
}

void scaling_factors(const Queue& queue, const kernels::ScalingFactors& a) {
  const int64_t low = channels_of(a.direction, a.channels), full = channels_of(a.gradient, a.channels);
  double* scratch =
      static_cast<double*>(stream_of(queue).scratch((2 * low + full) * static_cast<int64_t>(sizeof(double))));
  channel_squares(queue, a.direction, a.channels, scratch);
  channel_squares(queue, a.projected, a.channels, scratch + low);
  channel_squares(queue, a.gradient, a.channels, scratch + 2 * low);
  const Decision p{.factors = a.factors.as<float>(),
                   .previous = a.previous.as<float>(),
                   .direction = scratch,
                   .projected = scratch + low,
                   .gradient = scratch + 2 * low,
                   .direction_channels = low,
                   .gradient_channels = full,
                   .whole = a.channels == Channels::whole,
                   .growth = a.growth,
                   .control = a.control.as<double>()};
  launch("scaling_factors", queue, {dim3(1), dim3(sum_final_threads), sizeof(SumShared)}, decide, p);
}

void scale_channels(const Queue& queue, const kernels::ScaleChannels& a) {
  const Scaling p{.y = a.y.as<float>(),
                  .x = a.x.as<float>(),
                  .factors = a.factors.as<float>(),
                  .count = a.x.numel(),
                  .cols = a.x.shape[1],
                  .by_row = a.channels == Channels::rows,
                  .by_column = a.channels == Channels::columns};
  launch("scale_channels", queue, {dim3(blocks_of(p.count, threads)), dim3(threads)}, scale, p);
}

}  // namespace osprey::cuda
