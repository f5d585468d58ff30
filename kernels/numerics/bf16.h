#pragma once
// bfloat16 <-> float. Host and device, and safe to include in kernels/cpu/isa.

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define OSPREY_HD __host__ __device__ __forceinline__ static
#else
#define OSPREY_HD __attribute__((always_inline)) static inline
#endif

namespace osprey {

/// Storage of a bfloat16; arithmetic happens in float.
struct bf16 {
  uint16_t bits;
};

OSPREY_HD float to_float(bf16 v) {
  uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
OSPREY_HD float to_float(float v) { return v; }

/// Round to nearest, ties to even; NaN stays NaN (quiet).
OSPREY_HD bf16 to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t nan = (u >> 16) | 0x40u;
  return bf16{static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

template <class T>
struct Convert;
template <>
struct Convert<float> {
  OSPREY_HD float from(float v) { return v; }
};
template <>
struct Convert<bf16> {
  OSPREY_HD bf16 from(float v) { return to_bf16(v); }
};

}  // namespace osprey
