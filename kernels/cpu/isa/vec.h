#pragma once
// The widest float vector of the instruction set a file in kernels/cpu/isa is compiled for. Include
// from kernels/cpu/isa/*.cpp only.

// GCC 12 takes the deliberately undefined pass-through operand of AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>
#include <string.h>

#include "kernels/numerics/bf16.h"

#define OSPREY_INLINE __attribute__((always_inline)) static inline

namespace osprey::cpu::OSPREY_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * lanes)));
typedef int32_t IVec __attribute__((vector_size(4 * lanes)));
typedef uint64_t U64Vec __attribute__((vector_size(4 * lanes)));

/// Every lane is x, bit for bit (x may stand for two bf16 values).
OSPREY_INLINE Vec splat(float x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(x);
#else
  return (Vec)_mm_set1_ps(x);
#endif
}
OSPREY_INLINE IVec splat(int32_t x) {
#if defined(__AVX512F__)
  return (IVec)_mm512_set1_epi32(x);
#elif defined(__AVX2__)
  return (IVec)_mm256_set1_epi32(x);
#else
  return (IVec)_mm_set1_epi32(x);
#endif
}
OSPREY_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
OSPREY_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
OSPREY_INLINE IVec load(const int32_t* p) {
  IVec v;
  memcpy(&v, p, sizeof v);
  return v;
}
OSPREY_INLINE IVec iota() {
  IVec v;
  for (int i = 0; i < lanes; ++i) v[i] = i;
  return v;
}

OSPREY_INLINE Vec load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(__AVX2__)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
  const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm_unpacklo_epi16(_mm_setzero_si128(), half);
#endif
}

/// The bits of the bf16 nearest to each lane (ties to even), in the low 16 bits; NaN stays NaN.
OSPREY_INLINE IVec bf16_bits(Vec v) {
#if defined(__AVX512BF16__)
  return (IVec)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  typedef uint32_t UVec __attribute__((vector_size(4 * lanes)));
  const UVec u = (UVec)v;
  const UVec rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (IVec)(v == v ? rounded : (u >> 16) | 0x40u);
#endif
}

OSPREY_INLINE void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#elif defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bf16_bits(v)));
#else
  const IVec bits = bf16_bits(v);
  for (int i = 0; i < lanes; ++i) p[i].bits = static_cast<uint16_t>(bits[i]);
#endif
}

/// The low byte of each lane.
OSPREY_INLINE void store_bytes(uint8_t* p, IVec v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < lanes; ++i) p[i] = static_cast<uint8_t>(v[i]);
#endif
}

/// The low byte of each 64-bit lane.
OSPREY_INLINE void store_bytes(uint8_t* p, U64Vec v) {
#if defined(__AVX512F__)
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi8((__m512i)v));
#else
  for (int i = 0; i < lanes / 2; ++i) p[i] = static_cast<uint8_t>(v[i]);
#endif
}

/// Bit i is the sign of lane i: of a comparison, whether it holds there.
OSPREY_INLINE uint32_t sign_bits(IVec v) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)v));
#else
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)v));
#endif
}

/// Products of the low 32 bits of 64-bit lanes.
OSPREY_INLINE U64Vec multiply_low(U64Vec a, U64Vec b) {
#if defined(__AVX512F__)
  return (U64Vec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64Vec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
  return (U64Vec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#endif
}

/// NaN in `b` is returned, NaN in `a` is not.
OSPREY_INLINE Vec max_of(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#endif
}

OSPREY_INLINE float max_lane(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float m = v[0];
  for (int i = 1; i < lanes; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

OSPREY_INLINE float sum_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < lanes; ++i) s += v[i];
  return s;
#endif
}

/// out[i] = the maximum (or sum) of the lanes of v[i], for 16 vectors at once: a tree over all of
/// them takes fewer steps than 16 trees.
struct MaxOf {
  OSPREY_INLINE Vec of(Vec a, Vec b) { return max_of(a, b); }
  OSPREY_INLINE float lane(Vec v) { return max_lane(v); }
};
struct SumOf {
  OSPREY_INLINE Vec of(Vec a, Vec b) { return a + b; }
  OSPREY_INLINE float lane(Vec v) { return sum_lanes(v); }
};
template <class Op>
OSPREY_INLINE void reduce_rows(float* out, const Vec* v) {
#if defined(__AVX512F__)
  const auto quarters = [](Vec a, Vec b) {  // two quarters of a, then two of b
    return Op::of((Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44),
                  (Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee));
  };
  Vec one[4];
  for (int i = 0; i < 4; ++i) {
    const Vec a = quarters(v[i], v[i + 4]), b = quarters(v[i + 8], v[i + 12]);
    one[i] = Op::of((Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x88),
                    (Vec)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xdd));
  }
  const auto pairs = [](Vec a, Vec b) {
    return Op::of((Vec)_mm512_unpacklo_pd((__m512d)a, (__m512d)b),
                  (Vec)_mm512_unpackhi_pd((__m512d)a, (__m512d)b));
  };
  const Vec a = pairs(one[0], one[1]), b = pairs(one[2], one[3]);
  store(out, Op::of((Vec)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88),
                    (Vec)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xdd)));
#else
  for (int i = 0; i < 16; ++i) out[i] = Op::lane(v[i]);
#endif
}

/// 2^x. Numerics: relative error below 2e-7; exactly 0 below -126, infinity from 127.5; NaN stays
/// NaN. 2^x = 2^n p(x - n) with n the nearest integer and p of degree 6 interpolating at Chebyshev
/// nodes.
OSPREY_INLINE Vec exp2_of(Vec x) {
#if defined(__AVX512F__)
  x = max_of(splat(-200.0f), x);
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, 8);
  const Vec f = x - n;
#else
  const Vec clamped = x < -126.0f ? splat(-126.0f) : (x > 128.0f ? splat(128.0f) : x);
  // Conversion truncates, so round half away from zero by hand: adding and subtracting a large
  // constant would be folded away where sums may be reassociated.
  const IVec i = __builtin_convertvector(clamped + (clamped < 0.0f ? splat(-0.5f) : splat(0.5f)), IVec);
  const Vec f = clamped - __builtin_convertvector(i, Vec);
#endif
  Vec p = splat(1.545316294e-04f);
  p = p * f + 1.339086336e-03f;
  p = p * f + 9.618082557e-03f;
  p = p * f + 5.550357114e-02f;
  p = p * f + 2.402265076e-01f;
  p = p * f + 6.931471880e-01f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Vec e = p * (Vec)((i + 127) << 23);
  return x < -126.0f ? splat(0.0f) : e;
#endif
}

OSPREY_INLINE Vec sigmoid_of(Vec x) { return 1.0f / (1.0f + exp2_of(x * -1.44269504f)); }

}  // namespace osprey::cpu::OSPREY_ISA
