#pragma once
// What kernels/cpu/isa/quantize_lanes.cpp rounds, a row of y in each lane: loaded, rotated, scaled; AVX-512
// only.

#include "kernels/cpu/isa/quantize_lanes.h"
#include "kernels/cpu/isa/transpose16.h"

namespace osprey::cpu::OSPREY_ISA {

// Numbers of span columns from `col` on, into v[group * span + k].

template <bool bf16_rows>
OSPREY_INLINE void load_rows(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  constexpr int wide = bf16_rows ? 32 : 16;
  const char* x = static_cast<const char*>(a.x) + col * (bf16_rows ? 2 : 4);
  for (int64_t k = 0; k < span; k += wide) {
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const char* row = x + i * a.x_stride + k * (64 / wide);
      r[i] = _mm512_loadu_si512(row);
      __builtin_prefetch(row + 512);
    }
    transpose16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (bf16_rows) {
        v[k + 2 * i] = (Vec)_mm512_slli_epi32(r[i], 16);
        v[k + 2 * i + 1] = (Vec)_mm512_and_si512(r[i], _mm512_set1_epi32(-0x10000));
      } else {
        v[k + i] = (Vec)r[i];
      }
    }
  }
}

OSPREY_INLINE void load_columns_f32(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  for (int64_t k = 0; k < span; ++k) {
    const char* row = static_cast<const char*>(a.x) + (col + k) * a.x_stride;
    __builtin_prefetch(row + 64, 0, 2);
    v[k] = load(reinterpret_cast<const float*>(row));
  }
}

/// Of 32 rows the even ones are group 0 and the odd ones group 1: what two lie in a word needs no
/// permutation. Otherwise lane i of group g is row 16 g + i.
OSPREY_INLINE bool rows_alternate(const LanesTile& a) {
  return a.source == LanesTile::columns_bf16 && a.groups == 2;
}

OSPREY_INLINE void load_columns_bf16(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  for (int64_t k = 0; k < span; ++k) {
    const char* row = static_cast<const char*>(a.x) + (col + k) * a.x_stride;
    __builtin_prefetch(row + 64, 0, 2);
    if (a.groups == 2) {
      const __m512i both = _mm512_loadu_si512(row);
      v[k] = (Vec)_mm512_slli_epi32(both, 16);
      v[span + k] = (Vec)_mm512_and_si512(both, _mm512_set1_epi32(-0x10000));
    } else {
      v[k] = load(reinterpret_cast<const bf16*>(row));
    }
  }
}

/// Of mxfp4 or nvfp4.
template <ScaleType scale>
OSPREY_INLINE void load_columns_packed(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  alignas(64) float numbers[16];
  for (uint32_t code = 0; code < 16; ++code) numbers[code] = decode_element(Element::e2m1, code);
  const __m512 table = _mm512_load_ps(numbers);
  const __m512i word = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),
                shift = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
  for (int64_t k = 0; k < span; ++k) {
    const char* row = static_cast<const char*>(a.x) + (col + k) * a.x_stride;
    const uint8_t* scales = a.x_scales + (col + k) * a.x_scale_stride;
    __builtin_prefetch(row + 64, 0, 2);
    for (int64_t g = 0; g < a.groups; ++g) {
      const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + 8 * g));
      const __m512i code =
          _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, _mm512_castsi128_si512(codes)), shift);
      const Vec element = (Vec)_mm512_permutexvar_ps(code, table);
      if constexpr (scale == ScaleType::e8m0)
        v[g * span + k] = element * splat(decode_e8m0(scales[g / 2]));
      else
        v[g * span + k] = element * splat(decode_element(Element::e4m3, scales[g])) * splat(a.x_tensor_scale);
    }
  }
}

OSPREY_INLINE void load_numbers(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  switch (a.source) {
    case LanesTile::rows_f32:
      return load_rows<false>(v, a, col, span);
    case LanesTile::rows_bf16:
      return load_rows<true>(v, a, col, span);
    case LanesTile::columns_f32:
      return load_columns_f32(v, a, col, span);
    case LanesTile::columns_bf16:
      return load_columns_bf16(v, a, col, span);
    case LanesTile::columns_mxfp4:
      return load_columns_packed<ScaleType::e8m0>(v, a, col, span);
    default:
      return load_columns_packed<ScaleType::e4m3>(v, a, col, span);
  }
}

/// Sums and differences of numbers h apart, h = from, 2 from, ... below from * count.
template <int count>
OSPREY_INLINE void butterflies(Vec (&x)[count]) {
#pragma GCC unroll 8
  for (int h = 1; h < count; h *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i)
      if ((i & h) == 0) {
        const Vec p = x[i], q = x[i + h];
        x[i] = p + q;
        x[i + h] = p - q;
      }
}

/// Sylvester's matrix, sums of neighbours first, as in kernels/cpu/isa/quantize.cpp.
template <int size>
OSPREY_INLINE void rotate(Vec* v, const uint32_t* signs, float factor) {
  for (int i = 0; i < size; i += 8) {
    Vec x[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) x[j] = (Vec)((IVec)v[i + j] ^ splat(static_cast<int32_t>(signs[i + j])));
    butterflies(x);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) v[i + j] = x[j];
  }
  constexpr int apart = size / 8;
  for (int i = 0; i < 8; ++i) {
    Vec x[apart];
#pragma GCC unroll 16
    for (int j = 0; j < apart; ++j) x[j] = v[i + 8 * j];
    butterflies(x);
#pragma GCC unroll 16
    for (int j = 0; j < apart; ++j) v[i + 8 * j] = x[j] * splat(factor);
  }
}

OSPREY_INLINE void rotate(Vec* v, const LanesTile& a, int64_t span) {
  switch (a.size) {
    case 0:
      if (a.factor != 1)
        for (int64_t k = 0; k < span; ++k) v[k] = v[k] * splat(a.factor);
      return;
    case 16:
      rotate<16>(v, a.signs, a.factor);
      return rotate<16>(v + 16, a.signs, a.factor);
    case 32:
      return rotate<32>(v, a.signs, a.factor);
    case 64:
      return rotate<64>(v, a.signs, a.factor);
    default:
      return rotate<128>(v, a.signs, a.factor);
  }
}

}  // namespace osprey::cpu::OSPREY_ISA
