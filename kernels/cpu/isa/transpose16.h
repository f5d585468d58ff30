#pragma once
// 16 x 16 transposition of 32-bit elements; AVX-512 only.

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

static inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // r[4g + c] lane l now holds column 4l + c of rows 4g .. 4g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i ab_low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88),
                  ab_high = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i cd_low = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i cd_high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

}  // namespace osprey::cpu::OSPREY_ISA
