#include "kernels/norm.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm_team.h"

namespace osprey::cuda {

namespace {

/// A thread's columns of one row: the first Chunks packs stay in registers, further ones are read again when
/// they are needed.
template <class T, int V, int Chunks>
struct Row {
  const T* from;
  int64_t cols;
  int lane, lanes;
  Pack<T, V> held[Chunks];

  __device__ Row(const T* row, int64_t columns, const Place& p)
      : from(row), cols(columns), lane(p.lane), lanes(p.lanes) {
#pragma unroll
    for (int j = 0; j < Chunks; ++j)
      if (column(j) < cols) held[j] = Pack<T, V>::load(from + column(j));
  }
  __device__ int64_t column(int chunk) const { return (int64_t{chunk} * lanes + lane) * V; }
  /// f(column, pack)
  template <class F>
  __device__ void each(const F& f) {
#pragma unroll
    for (int j = 0; j < Chunks; ++j)
      if (column(j) < cols) f(column(j), held[j]);
    for (int j = Chunks; column(j) < cols; ++j) {
      Pack<T, V> pack = Pack<T, V>::load(from + column(j));
      f(column(j), pack);
    }
  }
  /// Becomes this row plus another, rounded, which is also written to `sum`.
  __device__ void add(const T* other, T* sum) {
    const Row b(other, cols, {lane, lanes, 0, 1});
    const auto put = [&](int64_t c, Pack<T, V>& x, const Pack<T, V>& y) {
      float v[V];
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = x[i] + y[i];
      x = Pack<T, V>::from(v);
      x.store(sum + c);
    };
#pragma unroll
    for (int j = 0; j < Chunks; ++j)
      if (column(j) < cols) put(column(j), held[j], b.held[j]);
    for (int j = Chunks; column(j) < cols; ++j) {
      Pack<T, V> x = Pack<T, V>::load(from + column(j));
      put(column(j), x, Pack<T, V>::load(other + column(j)));
    }
    from = sum;
  }
};

template <class T>
struct Forward {
  T* y;
  const T* x;
  T* sum;  // of x and `added`
  const T* added;
  const T *weight, *bias;
  float* stats;
  int64_t y_stride, x_stride, sum_stride, added_stride, rows, cols;
  int64_t weights;  // 1: SSNorm
  float eps;
};

template <class T, int V, int Chunks, Team team, Norm norm>
__global__ void norm_forward_kernel(Forward<T> a) {
  auto& room = block_shared<SumRoom<1>>();
  const Place p = place<team>();
  const int64_t r = int64_t{blockIdx.x} * p.teams + p.team;
  if (r >= a.rows) return;
  Row<T, V, Chunks> x(a.x + r * a.x_stride, a.cols, p);
  if constexpr (norm == Norm::added_rms) x.add(a.added + r * a.added_stride, a.sum + r * a.sum_stride);
  const float n = static_cast<float>(a.cols);
  float mean = 0;
  if constexpr (norm == Norm::layer) {
    float sum = 0;
    x.each([&](int64_t, const Pack<T, V>& v) {
#pragma unroll
      for (int i = 0; i < V; ++i) sum += v[i];
    });
    mean = team_sum<team>(sum, room) / n;
  }
  float squares = 0;
  x.each([&](int64_t, const Pack<T, V>& v) {
#pragma unroll
    for (int i = 0; i < V; ++i) squares += (v[i] - mean) * (v[i] - mean);
  });
  const float rstd = 1.0f / sqrtf(team_sum<team>(squares, room) / n + a.eps);
  if (p.lane == 0) {
    if constexpr (norm == Norm::layer) a.stats[2 * r] = mean;
    a.stats[norm == Norm::layer ? 2 * r + 1 : r] = rstd;
  }
  T* y = a.y + r * a.y_stride;
  const float w0 = to_float(a.weight[0]);
  x.each([&](int64_t c, const Pack<T, V>& v) {
    float out[V];
    if (a.weights == 1) {
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = (v[i] - mean) * (rstd * w0);
    } else {
      const auto w = Pack<T, V>::load(a.weight + c);
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = (v[i] - mean) * rstd * w[i];
    }
    if constexpr (norm == Norm::layer) {
      const auto b = Pack<T, V>::load(a.bias + c);
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] += b[i];
    }
    Pack<T, V>::from(out).store(y + c);
  });
}

template <class T, int V, int Chunks, Team team, Norm norm>
void launch_forward(const char* op, const Queue& queue, const Forward<T>& a, int threads) {
  const int64_t teams = team == Team::warp ? threads / warp_size : 1;
  launch(op, queue,
         {.blocks = static_cast<unsigned>((a.rows + teams - 1) / teams),
          .threads = static_cast<unsigned>(threads),
          .shared_bytes = sizeof(SumRoom<1>)},
         norm_forward_kernel<T, V, Chunks, team, norm>, a);
}

/// Narrow rows take a warp each, wide ones a block each.
template <class T, Norm norm>
void forward(const char* op, const Queue& queue, const Forward<T>& a, bool fits) {
  constexpr int V = vector_length<T>;
  if (!fits) return launch_forward<T, 1, 4, Team::block, norm>(op, queue, a, norm_threads);
  if (a.cols <= 2 * V * warp_size)
    return launch_forward<T, V, 2, Team::warp, norm>(op, queue, a, norm_threads);
  if (a.cols <= 4 * V * warp_size)
    return launch_forward<T, V, 4, Team::warp, norm>(op, queue, a, norm_threads);
  if (a.cols <= 8 * V * warp_size)
    return launch_forward<T, V, 8, Team::warp, norm>(op, queue, a, norm_threads);
  launch_forward<T, V, 4, Team::block, norm>(op, queue, a,
                                             a.cols <= 4 * V * norm_threads ? norm_threads : 512);
}

template <class T>
Forward<T> forward_args(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& stats,
                        float eps) {
  return {.y = y.as<T>(),
          .x = x.as<T>(),
          .weight = weight.as<T>(),
          .stats = stats.as<float>(),
          .y_stride = y.row_stride(),
          .x_stride = x.row_stride(),
          .rows = x.rows(),
          .cols = x.cols(),
          .weights = weight.numel(),
          .eps = eps};
}

template <class T>
void rmsnorm_forward(const Queue& queue, const kernels::RmsnormForward& f) {
  forward<T, Norm::rms>("rmsnorm", queue, forward_args<T>(f.y, f.x, f.weight, f.rstd, f.eps),
                        vectors<T>(f.y) && vectors<T>(f.x) && weight_fits<T>(f.weight));
}

template <class T>
void add_rmsnorm_forward(const Queue& queue, const kernels::AddRmsnormForward& f) {
  Forward<T> a = forward_args<T>(f.y, f.a, f.weight, f.rstd, f.eps);
  a.sum = f.sum.as<T>(), a.sum_stride = f.sum.row_stride();
  a.added = f.b.as<T>(), a.added_stride = f.b.row_stride();
  forward<T, Norm::added_rms>(
      "add_rmsnorm", queue, a,
      vectors<T>(f.y) && vectors<T>(f.a) && vectors<T>(f.b) && vectors<T>(f.sum) && weight_fits<T>(f.weight));
}

template <class T>
void layernorm_forward(const Queue& queue, const kernels::LayernormForward& f) {
  Forward<T> a = forward_args<T>(f.y, f.x, f.weight, f.stats, f.eps);
  a.bias = f.bias.as<T>();
  forward<T, Norm::layer>("layernorm", queue, a,
                          vectors<T>(f.y) && vectors<T>(f.x) && vectors<T>(f.weight) && vectors<T>(f.bias));
}

}  // namespace

void rmsnorm_forward(const Queue& queue, const kernels::RmsnormForward& f) {
  if (f.x.rows() == 0) return;
  f.x.dtype == DType::bf16 ? rmsnorm_forward<bf16>(queue, f) : rmsnorm_forward<float>(queue, f);
}

void add_rmsnorm_forward(const Queue& queue, const kernels::AddRmsnormForward& f) {
  if (f.a.rows() == 0) return;
  f.a.dtype == DType::bf16 ? add_rmsnorm_forward<bf16>(queue, f) : add_rmsnorm_forward<float>(queue, f);
}

void layernorm_forward(const Queue& queue, const kernels::LayernormForward& f) {
  if (f.x.rows() == 0) return;
  f.x.dtype == DType::bf16 ? layernorm_forward<bf16>(queue, f) : layernorm_forward<float>(queue, f);
}

}  // namespace osprey::cuda
