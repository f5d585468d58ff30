#pragma once
// Four consecutive elements as floats: what element-wise optimizer kernels move at a time. f32 takes one
// access of 16 bytes and bf16 one of 8, so that tensors of both types are walked in step. Where an address is
// not aligned or a tensor ends, single elements are moved; the arithmetic between load and store is the same
// code either way, so results do not depend on where a parameter begins or ends.

#include "kernels/cuda/ptx.h"

namespace osprey::cuda {

struct Four {
  float v[4];
};

template <class T>
__device__ inline bool whole_four(const T* p, int64_t left) {
  return left >= 4 && reinterpret_cast<uintptr_t>(p) % (4 * sizeof(T)) == 0;
}

/// The elements at p, p + 1, ... of which `left` exist; 0 for those that do not.
__device__ inline Four load_four(const float* p, int64_t left) {
  if (whole_four(p, left)) {
    const float4 x = *reinterpret_cast<const float4*>(p);
    return {{x.x, x.y, x.z, x.w}};
  }
  Four f{};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) f.v[i] = p[i];
  return f;
}
__device__ inline Four load_four(const bf16* p, int64_t left) {
  if (whole_four(p, left)) {
    const uint2 x = *reinterpret_cast<const uint2*>(p);
    return {{to_float(bf16{static_cast<uint16_t>(x.x)}), to_float(bf16{static_cast<uint16_t>(x.x >> 16)}),
             to_float(bf16{static_cast<uint16_t>(x.y)}), to_float(bf16{static_cast<uint16_t>(x.y >> 16)})}};
  }
  Four f{};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) f.v[i] = to_float(p[i]);
  return f;
}

/// Writes those that exist, rounded to nearest even where they are bf16.
__device__ inline void store_four(float* p, int64_t left, const Four& f) {
  if (whole_four(p, left)) {
    *reinterpret_cast<float4*>(p) = make_float4(f.v[0], f.v[1], f.v[2], f.v[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) p[i] = f.v[i];
}
__device__ inline void store_four(bf16* p, int64_t left, const Four& f) {
  const uint32_t low = pack_bf16x2(f.v[0], f.v[1]), high = pack_bf16x2(f.v[2], f.v[3]);
  if (whole_four(p, left)) {
    *reinterpret_cast<uint2*>(p) = make_uint2(low, high);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) p[i] = bf16{static_cast<uint16_t>((i < 2 ? low : high) >> (i % 2 * 16))};
}

}  // namespace osprey::cuda
