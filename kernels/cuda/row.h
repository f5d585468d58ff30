#pragma once
// Vectors of 16 bytes, and sums over a warp and a block.

#include "kernels/cuda/ptx.h"

namespace osprey::cuda {

inline constexpr int warp_size = 32;
inline constexpr unsigned full_warp = 0xffffffffu;

/// Elements of T that one 16-byte access moves.
template <class T>
inline constexpr int vector_length = 16 / static_cast<int>(sizeof(T));

/// vector_length<T> elements in registers as floats.
template <class T>
struct Vector;

template <>
struct Vector<float> {
  float v[4];
  __device__ static Vector load(const float* p) {
    const float4 x = *reinterpret_cast<const float4*>(p);
    return {{x.x, x.y, x.z, x.w}};
  }
  __device__ void store(float* p) const {
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
  }
};

template <>
struct Vector<bf16> {
  float v[8];
  __device__ static float low(uint32_t pair) { return to_float(bf16{static_cast<uint16_t>(pair)}); }
  __device__ static float high(uint32_t pair) { return to_float(bf16{static_cast<uint16_t>(pair >> 16)}); }
  __device__ static Vector load(const bf16* p) {
    const uint4 x = *reinterpret_cast<const uint4*>(p);
    return {{low(x.x), high(x.x), low(x.y), high(x.y), low(x.z), high(x.z), low(x.w), high(x.w)}};
  }
  __device__ void store(bf16* p) const {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]),
                                              pack_bf16x2(v[4], v[5]), pack_bf16x2(v[6], v[7]));
  }
};

/// May rows that start at `p` and lie `stride` elements apart be read as vectors, `cols` elements each?
template <class T>
__host__ __device__ inline bool vectorizable(const T* p, int64_t stride, int64_t cols) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % vector_length<T> == 0 &&
         cols % vector_length<T> == 0;
}

/// Sum over the 32 lanes, the same bits in all of them.
template <class T>
__device__ inline T warp_sum(T v) {
  for (int lane = warp_size / 2; lane > 0; lane /= 2) v += __shfl_xor_sync(full_warp, v, lane);
  return v;
}
__device__ inline float warp_max(float v) {
  for (int lane = warp_size / 2; lane > 0; lane /= 2) v = fmaxf(v, __shfl_xor_sync(full_warp, v, lane));
  return v;
}

/// Sum over a block of a multiple of 32 threads, the same bits in all; `room` is shared memory for one value
/// a warp. All threads call it; it may be called again at once.
template <class T>
__device__ inline T block_sum(T v, T* room) {
  v = warp_sum(v);
  const int warps = static_cast<int>(blockDim.x) / warp_size,
            warp = static_cast<int>(threadIdx.x) / warp_size;
  if (threadIdx.x % warp_size == 0) room[warp] = v;
  __syncthreads();
  T total = T(0);
  for (int w = 0; w < warps; ++w) total += room[w];
  __syncthreads();
  return total;
}

}  // namespace osprey::cuda
