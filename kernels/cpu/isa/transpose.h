#pragma once
// Transposition of 32-bit words. Include from kernels/cpu/isa/*.cpp only.

#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

typedef uint32_t __attribute__((may_alias)) Word;

/// to[c][r] = from[r][c] for words; rows a multiple of 16 (or of anything, slowly).
static void transpose(float* to, int64_t to_stride, const float* from, int64_t from_stride, int rows,
                      int cols) {
  int c = 0;
#if defined(__AVX512F__)
  const int whole_rows = rows / 16 * 16;
  for (; c + 16 <= cols; c += 16)
    for (int r = 0; r < whole_rows; r += 16) {
      // Four rounds of swapping halves: quarters across rows 8 and 4 apart, then words 2 and 1
      // apart.
      __m512 v[16], w[16];
      for (int i = 0; i < 16; ++i) v[i] = (__m512)load(from + (r + i) * from_stride + c);
      for (int i = 0; i < 8; ++i) {
        w[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        w[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
      }
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 2; ++j) {
          const __m512d lo = (__m512d)w[4 * i + j], hi = (__m512d)w[4 * i + j + 2];
          v[4 * i + 2 * j] = (__m512)_mm512_unpacklo_pd(lo, hi);
          v[4 * i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(lo, hi);
        }
      // v[4 i + k], quarter q holds column 4 q + k of rows 4 i .. 4 i + 3.
      for (int k = 0; k < 4; ++k) {
        const __m512 a = _mm512_shuffle_f32x4(v[k], v[4 + k], 0x88),
                     b = _mm512_shuffle_f32x4(v[k], v[4 + k], 0xdd);
        const __m512 d = _mm512_shuffle_f32x4(v[8 + k], v[12 + k], 0x88);
        const __m512 e = _mm512_shuffle_f32x4(v[8 + k], v[12 + k], 0xdd);
        store(to + (c + k) * to_stride + r, (Vec)_mm512_shuffle_f32x4(a, d, 0x88));
        store(to + (c + 4 + k) * to_stride + r, (Vec)_mm512_shuffle_f32x4(b, e, 0x88));
        store(to + (c + 8 + k) * to_stride + r, (Vec)_mm512_shuffle_f32x4(a, d, 0xdd));
        store(to + (c + 12 + k) * to_stride + r, (Vec)_mm512_shuffle_f32x4(b, e, 0xdd));
      }
    }
  if (whole_rows < rows) c = 0;  // odd row counts: all again, the slow way
#endif
  for (; c < cols; ++c)
    for (int r = 0; r < rows; ++r)
      reinterpret_cast<Word*>(to)[c * to_stride + r] =
          reinterpret_cast<const Word*>(from)[r * from_stride + c];
}

}  // namespace osprey::cpu::OSPREY_ISA
