#pragma once
// Elements in registers as they lie in memory: half the registers of floats for bf16, and bits survive a
// copy.

#include "kernels/cuda/row.h"

namespace osprey::cuda {

/// V elements of T: one, or whole 16-byte vectors.
template <class T, int V>
struct Pack;

template <class T>
struct Pack<T, 1> {
  T value;
  __device__ static Pack load(const T* p) { return {*p}; }
  __device__ static Pack from(const float (&v)[1]) { return {Convert<T>::from(v[0])}; }
  __device__ void store(T* p) const { *p = value; }
  __device__ float operator[](int) const { return to_float(value); }
};

template <int V>
requires(V > 1) struct Pack<float, V> {
  static_assert(V % 4 == 0);
  float v[V];
  __device__ static Pack load(const float* p) {
    Pack pack;
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      const float4 x = *reinterpret_cast<const float4*>(p + k);
      pack.v[k] = x.x, pack.v[k + 1] = x.y, pack.v[k + 2] = x.z, pack.v[k + 3] = x.w;
    }
    return pack;
  }
  __device__ static Pack from(const float (&values)[V]) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.v[i] = values[i];
    return pack;
  }
  __device__ void store(float* p) const {
#pragma unroll
    for (int k = 0; k < V; k += 4)
      *reinterpret_cast<float4*>(p + k) = make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
  }
  __device__ float operator[](int i) const { return v[i]; }
};

template <int V>
requires(V > 1) struct Pack<bf16, V> {
  static_assert(V % 8 == 0);
  uint32_t pairs[V / 2];
  __device__ static Pack load(const bf16* p) {
    Pack pack;
#pragma unroll
    for (int k = 0; k < V / 2; k += 4) {
      const uint4 x = *reinterpret_cast<const uint4*>(p + 2 * k);
      pack.pairs[k] = x.x, pack.pairs[k + 1] = x.y, pack.pairs[k + 2] = x.z, pack.pairs[k + 3] = x.w;
    }
    return pack;
  }
  __device__ static Pack from(const float (&v)[V]) {
    Pack pack;
#pragma unroll
    for (int k = 0; k < V / 2; ++k) pack.pairs[k] = pack_bf16x2(v[2 * k], v[2 * k + 1]);
    return pack;
  }
  __device__ void store(bf16* p) const {
#pragma unroll
    for (int k = 0; k < V / 2; k += 4)
      *reinterpret_cast<uint4*>(p + 2 * k) = make_uint4(pairs[k], pairs[k + 1], pairs[k + 2], pairs[k + 3]);
  }
  __device__ float operator[](int i) const {
    return i % 2 == 0 ? Vector<bf16>::low(pairs[i / 2]) : Vector<bf16>::high(pairs[i / 2]);
  }
};

}  // namespace osprey::cuda
