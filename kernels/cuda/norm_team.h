#pragma once
// What the forward and backward kernels of norms share.

#include "kernels/core/tensor.h"
#include "kernels/cuda/pack.h"

namespace osprey::cuda {

enum class Norm { rms, added_rms, layer };

/// Who shares a row: a warp, with other rows in the block's other warps, or the whole block.
enum class Team { warp, block };

inline constexpr int norm_threads = 256, norm_warps = norm_threads / warp_size;

/// Where a thread stands.
struct Place {
  int lane, lanes, team, teams;
};
template <Team kind>
__device__ Place place() {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  if constexpr (kind == Team::warp) return {t % warp_size, warp_size, t / warp_size, n / warp_size};
  return {t, n, 0, 1};
}

/// Room for N sums over a block of up to 512 threads.
template <int N>
struct SumRoom {
  float warps[16][N];
};

/// Sums over a team, the same bits in all its threads. A block's room may be used again at once.
template <Team kind, int N>
__device__ void team_sums(float (&v)[N], SumRoom<N>& room) {
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = warp_sum(v[i]);
  if constexpr (kind == Team::block) {
    if (threadIdx.x % warp_size == 0)
#pragma unroll
      for (int i = 0; i < N; ++i) room.warps[threadIdx.x / warp_size][i] = v[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) {
      v[i] = 0;
      for (int w = 0; w < static_cast<int>(blockDim.x) / warp_size; ++w) v[i] += room.warps[w][i];
    }
    __syncthreads();
  }
}
template <Team kind>
__device__ float team_sum(float v, SumRoom<1>& room) {
  float one[1] = {v};
  team_sums<kind>(one, room);
  return one[0];
}

/// Whether rows of `t`, if there are any, can be read as vectors.
template <class T>
bool vectors(const Tensor& t) {
  return !t.defined() || vectorizable(t.as<T>(), t.row_stride(), t.cols());
}

template <class T>
bool weight_fits(const Tensor& weight) {
  return weight.numel() == 1 || vectors<T>(weight);
}

}  // namespace osprey::cuda
