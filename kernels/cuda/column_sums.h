#pragma once
// Sums over the rows of a matrix, in an order that its shape fixes.

#include <algorithm>

#include "kernels/core/tensor.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"

namespace osprey::cuda {

/// out[i] = base[i] + sum of the rows of chunk i of x. Chunks are runs of rows of nearly equal length.
template <class T>
struct ColumnSums {
  float* out;         // (chunks, cols), rows out_stride apart
  const float* base;  // may be out; null: zeros
  int64_t out_stride;
  const T* x;
  int64_t x_stride, rows, cols;
  int64_t chunks = 1;
};

inline constexpr int column_sums_warps = 8;

template <int V>
struct ColumnSumsShared {
  float sums[column_sums_warps][V][warp_size];
};

/// A block sums V * 32 columns of one chunk; its warps take turns with the rows.
template <class T, int V>
__global__ void column_sums_kernel(ColumnSums<T> a) {
  constexpr int warps = column_sums_warps, ahead = 8;
  auto& shared = block_shared<ColumnSumsShared<V>>();
  const int lane = static_cast<int>(threadIdx.x) % warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t column = (blockIdx.x * int64_t{warp_size} + lane) * V, chunk = blockIdx.y;
  const int64_t begin = a.rows * chunk / a.chunks, end = a.rows * (chunk + 1) / a.chunks;
  float sum[V] = {};
  if (column < a.cols) {
    const T* x = a.x + column;
    for (int64_t r = begin + warp; r < end; r += warps * ahead) {
      Pack<T, V> rows[ahead];
#pragma unroll
      for (int k = 0; k < ahead; ++k)
        if (r + k * warps < end) rows[k] = Pack<T, V>::load(x + (r + k * warps) * a.x_stride);
#pragma unroll
      for (int k = 0; k < ahead; ++k)
        if (r + k * warps < end)
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += rows[k][i];
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) shared.sums[warp][i][lane] = sum[i];
  __syncthreads();
  if (warp != 0 || column >= a.cols) return;
  const int64_t at = chunk * a.out_stride + column;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float total = a.base ? a.base[at + i] : 0.0f;
    for (int w = 0; w < warps; ++w) total += shared.sums[w][i][lane];
    a.out[at + i] = total;
  }
}

template <class T>
void column_sums(const char* op, const Queue& queue, const ColumnSums<T>& a) {
  const auto run = [&]<int V>(std::integral_constant<int, V>) {
    const int64_t blocks = (a.cols + V * warp_size - 1) / (V * warp_size);
    launch(op, queue,
           {.blocks = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(a.chunks)),
            .threads = column_sums_warps * warp_size,
            .shared_bytes = sizeof(ColumnSumsShared<V>)},
           column_sums_kernel<T, V>, a);
  };
  if (vectorizable(a.x, a.x_stride, a.cols))
    run(std::integral_constant<int, vector_length<T>>{});
  else
    run(std::integral_constant<int, 1>{});
}

/// out (+)= the sum of `rows` partial results, `stride` apart.
inline void sum_partials(const char* op, const Queue& queue, const Accum& out, const float* partial,
                         int64_t rows, int64_t stride) {
  if (!out) return;
  column_sums<float>(op, queue,
                     {.out = out.tensor.as<float>(),
                      .base = out.add ? out.tensor.as<float>() : nullptr,
                      .out_stride = 0,
                      .x = partial,
                      .x_stride = stride,
                      .rows = rows,
                      .cols = out.tensor.numel()});
}

}  // namespace osprey::cuda
