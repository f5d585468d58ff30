#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_team.h"
#include "kernels/norm.h"

namespace osprey::cuda {

namespace {

template <class T, Norm norm>
struct Backward {
  T* dx;          // null: not wanted
  const T* base;  // what dx is added to; null: nothing
  const T *dy, *x, *weight;
  const float* stats;
  float* partial;  // (blocks, partial_stride): dweight, then dbias
  int64_t dx_stride, base_stride, dy_stride, x_stride, partial_stride, rows, cols;
  int64_t weights;

  /// SSNorm, or RMSNorm of one column, which is the same.
  __device__ bool one_weight() const { return norm == Norm::rms && weights == 1; }
};

/// mean and 1 / deviation of a row.
struct Stats {
  float mean, rstd;
};
template <Norm norm>
__device__ Stats stats_of(const float* stats, int64_t row) {
  if constexpr (norm == Norm::layer) return {stats[2 * row], stats[2 * row + 1]};
  return {0, stats[row]};
}

/// dx = scale rstd (g - mean(g) - xhat mean(g xhat)) with g = w dy; the RMS norms have no mean(g), and of one
/// weight for all columns it is `scale`, and w is 1.
template <class T, int V, Norm norm>
__device__ void load_weight(float (&w)[V], const Backward<T, norm>& a, int64_t c) {
  Pack<T, V> pack{};
  if (!a.one_weight()) pack = Pack<T, V>::load(a.weight + c);
#pragma unroll
  for (int i = 0; i < V; ++i) w[i] = a.one_weight() ? 1.0f : pack[i];
}
template <class T, Norm norm>
__device__ float scale_of(const Backward<T, norm>& a) {
  return a.one_weight() ? to_float(a.weight[0]) : 1.0f;
}
struct Means {
  float g, g_xhat;
};
__device__ inline float dx_of(float g, float x, const Stats& s, const Means& m, float scale) {
  return scale * s.rstd * (g - m.g - (x - s.mean) * s.rstd * m.g_xhat);
}

/// Rows that a team works on at the same time, in registers.
template <class T, int V, int Chunks, int Rows, Norm norm>
struct Batch {
  Pack<T, V> x[Rows][Chunks], dy[Rows][Chunks], base[Rows][Chunks];
  Stats stats[Rows];
  int64_t first, end;
  Place p;

  __device__ int64_t column(int chunk) const { return (int64_t{chunk} * p.lanes + p.lane) * V; }

  __device__ void load(const Backward<T, norm>& a) {
#pragma unroll
    for (int k = 0; k < Rows; ++k) {
      if (first + k >= end) continue;
      const int64_t r = first + k;
#pragma unroll
      for (int j = 0; j < Chunks; ++j) {
        const int64_t c = column(j);
        if (c >= a.cols) continue;
        x[k][j] = Pack<T, V>::load(a.x + r * a.x_stride + c);
        dy[k][j] = Pack<T, V>::load(a.dy + r * a.dy_stride + c);
        if (a.base) base[k][j] = Pack<T, V>::load(a.base + r * a.base_stride + c);
      }
      stats[k] = stats_of<norm>(a.stats, r);
    }
  }
  /// This thread's part of sum(g xhat) and, for LayerNorm, sum(g) of every row; grows the weights' gradients.
  template <int Sums, int BiasChunks>
  __device__ void add_up(const Backward<T, norm>& a, float (&sums)[Sums], float (&dweight)[Chunks][V],
                         float (&dbias)[BiasChunks][V]) const {
#pragma unroll
    for (int j = 0; j < Chunks; ++j) {
      if (column(j) >= a.cols) continue;
      float w[V];
      load_weight(w, a, column(j));
#pragma unroll
      for (int k = 0; k < Rows; ++k) {
        if (first + k >= end) continue;
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float d = dy[k][j][i], xhat = (x[k][j][i] - stats[k].mean) * stats[k].rstd;
          sums[k] += d * w[i] * xhat;
          dweight[j][i] += d * xhat;
          if constexpr (norm == Norm::layer) {
            sums[Rows + k] += d * w[i];
            dbias[j][i] += d;
          }
        }
      }
    }
  }
  template <int Sums>
  __device__ void write_dx(const Backward<T, norm>& a, const float (&sums)[Sums]) const {
    const float scale = scale_of(a), n = static_cast<float>(a.cols);
#pragma unroll
    for (int j = 0; j < Chunks; ++j) {
      const int64_t c = column(j);
      if (c >= a.cols) continue;
      float w[V];
      load_weight(w, a, c);
#pragma unroll
      for (int k = 0; k < Rows; ++k) {
        if (first + k >= end) continue;
        Means m{0, sums[k] / n};
        if constexpr (norm == Norm::layer) m.g = sums[Rows + k] / n;
        float out[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
          out[i] = dx_of(dy[k][j][i] * w[i], x[k][j][i], stats[k], m, scale);
          if (a.base) out[i] += base[k][j][i];
        }
        Pack<T, V>::from(out).store(a.dx + (first + k) * a.dx_stride + c);
      }
    }
  }
};

/// Of a warp's own gradients of the weights; blocks that share rows need only the room for sums.
template <int Sums, Team team, int Columns>
struct BackwardShared {
  SumRoom<Sums> room;
  float columns[team == Team::warp ? norm_warps : 1][Columns];
};

/// A thread's gradients of its columns become the block's row of `partial`.
template <Team team, int Chunks, int V, class Shared>
__device__ void write_partial(float* partial, const float (&sums)[Chunks][V], int64_t cols, const Place& p,
                              Shared& s) {
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int j = 0; j < Chunks; ++j)
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int64_t c = (int64_t{j} * p.lanes + p.lane) * V + i;
        if (c < cols) f(c, sums[j][i]);
      }
  };
  if constexpr (team == Team::block) {
    each([&](int64_t c, float v) { partial[c] = v; });
  } else {
    __syncthreads();
    each([&](int64_t c, float v) { s.columns[p.team][c] = v; });
    __syncthreads();
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) {
      float total = 0;
      for (int w = 0; w < p.teams; ++w) total += s.columns[w][c];
      partial[c] = total;
    }
  }
}

/// The same for the one weight of SSNorm, of which every thread of a team has the team's sum.
template <Team team, class Shared>
__device__ void write_one_partial(float* partial, float sum, const Place& p, Shared& s) {
  if constexpr (team == Team::warp) {
    if (p.lane == 0) s.columns[p.team][0] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < p.teams; ++w) sum += s.columns[w][0];
  }
  if (threadIdx.x == 0) partial[0] = sum;
}

/// A block works through its chunk of the rows and sums up the gradients of the weights. Every row fits into
/// the registers of a team: x and dy are read once, and dx is written once.
template <class T, int V, int Chunks, Team team, Norm norm>
__global__ void __launch_bounds__(512) norm_backward_kernel(Backward<T, norm> a) {
  constexpr bool layer = norm == Norm::layer;
  constexpr int Rows = 4 / Chunks, Sums = layer ? 2 * Rows : Rows;
  auto& shared = block_shared<BackwardShared<Sums, team, Chunks * V * warp_size>>();
  const Place p = place<team>();
  const int64_t begin = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + 1) / gridDim.x;
  float dweight[Chunks][V] = {}, dbias[layer ? Chunks : 1][V] = {}, dscale = 0;
  for (int64_t first = begin + int64_t{p.team} * Rows; first < end; first += int64_t{p.teams} * Rows) {
    Batch<T, V, Chunks, Rows, norm> batch;
    batch.first = first, batch.end = end, batch.p = p;
    batch.load(a);
    float sums[Sums] = {};
    batch.add_up(a, sums, dweight, dbias);
    team_sums<team>(sums, shared.room);
    for (int k = 0; k < Rows; ++k) dscale += sums[k];
    if (a.dx) batch.write_dx(a, sums);
  }
  float* partial = a.partial + blockIdx.x * a.partial_stride;
  if (a.one_weight()) return write_one_partial<team>(partial, dscale, p, shared);
  write_partial<team>(partial, dweight, a.cols, p, shared);
  if constexpr (layer) write_partial<team>(partial + a.cols, dbias, a.cols, p, shared);
}

/// The same for rows of any width and alignment, a block a row: they are read twice, and the gradients of the
/// weights are added up in `partial`.
template <class T, Norm norm>
__global__ void any_norm_backward_kernel(Backward<T, norm> a) {
  auto& room = block_shared<SumRoom<2>>();
  const int64_t begin = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + 1) / gridDim.x;
  float* dweight = a.partial + blockIdx.x * a.partial_stride;
  float* dbias = norm == Norm::layer ? dweight + a.cols : nullptr;
  for (int64_t c = threadIdx.x; c < a.partial_stride; c += blockDim.x) dweight[c] = 0;
  __syncthreads();
  const float scale = scale_of(a), n = static_cast<float>(a.cols);
  for (int64_t r = begin; r < end; ++r) {
    const T *x = a.x + r * a.x_stride, *dy = a.dy + r * a.dy_stride;
    const Stats s = stats_of<norm>(a.stats, r);
    float sums[2] = {0, 0};
    for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
      float w[1];
      load_weight(w, a, c);
      const float d = to_float(dy[c]), xhat = (to_float(x[c]) - s.mean) * s.rstd;
      sums[0] += d * w[0];
      sums[1] += d * w[0] * xhat;
      if (!a.one_weight()) dweight[c] += d * xhat;
      if (dbias) dbias[c] += d;
    }
    team_sums<Team::block>(sums, room);
    if (a.one_weight() && threadIdx.x == 0) dweight[0] += sums[1];
    const Means m{norm == Norm::layer ? sums[0] / n : 0, sums[1] / n};
    for (int64_t c = threadIdx.x; c < a.cols && a.dx; c += blockDim.x) {
      float w[1];
      load_weight(w, a, c);
      float out = dx_of(to_float(dy[c]) * w[0], to_float(x[c]), s, m, scale);
      if (a.base) out += to_float(a.base[r * a.base_stride + c]);
      a.dx[r * a.dx_stride + c] = Convert<T>::from(out);
    }
  }
}

template <class T, int Chunks, Team team, Norm norm>
void launch_backward(const char* op, const Queue& queue, const Backward<T, norm>& a, int64_t blocks,
                     int threads) {
  constexpr int Rows = 4 / Chunks, Sums = norm == Norm::layer ? 2 * Rows : Rows, V = vector_length<T>;
  launch(op, queue,
         {.blocks = static_cast<unsigned>(blocks),
          .threads = static_cast<unsigned>(threads),
          .shared_bytes = sizeof(BackwardShared<Sums, team, Chunks * V * warp_size>)},
         norm_backward_kernel<T, V, Chunks, team, norm>, a);
}

template <class T, Norm norm>
void backward(const char* op, const Queue& queue, const Backward<T, norm>& a, int64_t blocks, bool fits) {
  constexpr int warp = vector_length<T> * warp_size, block = vector_length<T> * norm_threads;
  if (!fits || a.cols > 8 * block)
    launch(op, queue,
           {.blocks = static_cast<unsigned>(blocks),
            .threads = norm_threads,
            .shared_bytes = sizeof(SumRoom<2>)},
           any_norm_backward_kernel<T, norm>, a);
  else if (a.cols <= warp)
    launch_backward<T, 1, Team::warp, norm>(op, queue, a, blocks, norm_threads);
  else if (a.cols <= 2 * warp)
    launch_backward<T, 2, Team::warp, norm>(op, queue, a, blocks, norm_threads);
  else if (a.cols <= 4 * warp)
    launch_backward<T, 4, Team::warp, norm>(op, queue, a, blocks, norm_threads);
  else if (a.cols <= block)
    launch_backward<T, 1, Team::block, norm>(op, queue, a, blocks, norm_threads);
  else if (a.cols <= 2 * block)
    launch_backward<T, 2, Team::block, norm>(op, queue, a, blocks, norm_threads);
  else
    launch_backward<T, 4, Team::block, norm>(op, queue, a, blocks, a.cols <= 4 * block ? norm_threads : 512);
}

template <class T>
const T* data_or_null(const Tensor& t) {
  return t.defined() ? t.as<T>() : nullptr;
}
int64_t stride_or_0(const Tensor& t) { return t.defined() ? t.row_stride() : 0; }

/// `dsum`: what is added to dx besides what dx may hold already.
template <class T, Norm norm>
void run_backward(const char* op, const Queue& queue, const Accum& dx, const Tensor& dsum, const Tensor& dy,
                  const Tensor& x, const Tensor& weight, const Tensor& stats, const Tensor& partial) {
  const Tensor base = dx && dx.add ? dx.tensor : dsum;
  const Backward<T, norm> a{.dx = dx ? dx.tensor.as<T>() : nullptr,
                            .base = data_or_null<T>(base),
                            .dy = dy.as<T>(),
                            .x = x.as<T>(),
                            .weight = weight.as<T>(),
                            .stats = stats.as<float>(),
                            .partial = partial.as<float>(),
                            .dx_stride = stride_or_0(dx.tensor),
                            .base_stride = stride_or_0(base),
                            .dy_stride = dy.row_stride(),
                            .x_stride = x.row_stride(),
                            .partial_stride = partial.cols(),
                            .rows = x.rows(),
                            .cols = x.cols(),
                            .weights = weight.numel()};
  backward<T, norm>(
      op, queue, a, partial.rows(),
      vectors<T>(dx.tensor) && vectors<T>(base) && vectors<T>(dy) && vectors<T>(x) && weight_fits<T>(weight));
}

}  // namespace

void rmsnorm_backward(const Queue& queue, const kernels::RmsnormBackward& b) {
  const auto run = b.x.dtype == DType::bf16 ? run_backward<bf16, Norm::rms> : run_backward<float, Norm::rms>;
  run("rmsnorm backward", queue, b.dx, b.dsum, b.dy, b.x, b.weight, b.rstd, b.partial);
  sum_partials("rmsnorm backward", queue, b.dweight, b.partial.as<float>(), b.partial.rows(),
               b.partial.cols());
}

void layernorm_backward(const Queue& queue, const kernels::LayernormBackward& b) {
  const auto run =
      b.x.dtype == DType::bf16 ? run_backward<bf16, Norm::layer> : run_backward<float, Norm::layer>;
  run("layernorm backward", queue, b.dx, Tensor{}, b.dy, b.x, b.weight, b.stats, b.partial);
  const int64_t width = b.partial.cols();
  const float* partial = b.partial.as<float>();
  sum_partials("layernorm backward", queue, b.dweight, partial, b.partial.rows(), width);
  sum_partials("layernorm backward", queue, b.dbias, partial + b.x.cols(), b.partial.rows(), width);
}

}  // namespace osprey::cuda
