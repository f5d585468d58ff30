#pragma once
// Sixteen bytes at a time, from and to any address.

#include "kernels/cuda/ptx.h"

namespace osprey::cuda {

struct alignas(16) Sixteen {
  uint32_t word[4];
};

/// Do rows that start at `p`, `stride` bytes apart, all begin where 16 bytes may be moved at once?
__host__ __device__ inline bool whole_sixteens(const void* p, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride)) % 16 == 0;
}

/// `whole` is what whole_sixteens() says.
__device__ inline Sixteen load_sixteen(const uint8_t* p, bool whole) {
  if (whole) {
    const uint4 x = *reinterpret_cast<const uint4*>(p);
    return {{x.x, x.y, x.z, x.w}};
  }
  Sixteen s{};
#pragma unroll
  for (int i = 0; i < 16; ++i) s.word[i / 4] |= static_cast<uint32_t>(p[i]) << (i % 4 * 8);
  return s;
}
__device__ inline void store_sixteen(uint8_t* p, bool whole, const Sixteen& s) {
  if (whole) {
    *reinterpret_cast<uint4*>(p) = make_uint4(s.word[0], s.word[1], s.word[2], s.word[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(s.word[i / 4] >> (i % 4 * 8));
}

}  // namespace osprey::cuda
