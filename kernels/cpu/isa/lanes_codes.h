#pragma once
// Codes of 16 scaled numbers at once, and the draws of their rounding; AVX-512 only. What is found is what
// kernels/numerics/block_codec.h says, bit for bit.

#include "kernels/cpu/isa/quantize_lanes.h"
#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::OSPREY_ISA {

/// Draws of one block: word [g][i] of a lane has draws 16 g + 4 i to 16 g + 4 i + 3, the first lowest.
OSPREY_INLINE void draw_block(__m512i (&draws)[2][4], const LanesTile& a, uint64_t first) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i row = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                         _mm512_set1_epi64(static_cast<int64_t>(a.draw_stride / 16)));
  const __m512i low_words = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  // Four chains: rows 0 to 7 and 8 to 15 of two groups. A 64-bit lane holds a 32-bit word; what is above it
  // reaches no later product.
  __m512i c0[4], c1[4], c2[4], c3[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint64_t base =
        first / 16 + static_cast<uint64_t>(i / 2) + static_cast<uint64_t>(i % 2) * 8 * (a.draw_stride / 16);
    const __m512i counter = _mm512_add_epi64(row, _mm512_set1_epi64(static_cast<int64_t>(base)));
    c0[i] = counter;
    c1[i] = _mm512_srli_epi64(counter, 32);
    c2[i] = _mm512_set1_epi64(static_cast<int64_t>(a.stream & 0xffffffffu));
    c3[i] = _mm512_set1_epi64(static_cast<int64_t>(a.stream >> 32));
  }
  uint32_t k0 = static_cast<uint32_t>(a.seed), k1 = static_cast<uint32_t>(a.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i p0 = _mm512_mul_epu32(c0[i], m0), p1 = _mm512_mul_epu32(c2[i], m1);
      c0[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[i], key0, 0x96);
      c2[i] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[i], key1, 0x96);
      c1[i] = p1;
      c3[i] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
#pragma GCC unroll 2
  for (int g = 0; g < 2; ++g) {
    draws[g][0] = _mm512_permutex2var_epi32(c0[2 * g], low_words, c0[2 * g + 1]);
    draws[g][1] = _mm512_permutex2var_epi32(c1[2 * g], low_words, c1[2 * g + 1]);
    draws[g][2] = _mm512_permutex2var_epi32(c2[2 * g], low_words, c2[2 * g + 1]);
    draws[g][3] = _mm512_permutex2var_epi32(c3[2 * g], low_words, c3[2 * g + 1]);
  }
}

constexpr int e2m1_fraction = 22;
/// Of e2m1: magnitudes of scaled numbers, at most 6, to codes with 22 bits behind the point, and half of
/// a draw's last bit added: with a draw added behind the point what is before it is what encode_stochastic()
/// finds. From 1 on a float's bits are the code but for an offset; those of (1 + a) / 2 go on below, where
/// codes count halves.
OSPREY_INLINE __m512i e2m1_with_fraction(__m512 a) {
  const __m512 half = _mm512_set1_ps(0.5f);
  const __m512i line =
      (__m512i)_mm512_mask_fmadd_round_ps(a, _mm512_cmp_ps_mask(a, _mm512_set1_ps(1.0f), _CMP_LT_OQ), half,
                                          half, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  return _mm512_sub_epi32(line, _mm512_set1_epi32(0x3f000000 - (1 << (e2m1_fraction - 9))));
}
/// The same to the nearest code, ties to the even one.
OSPREY_INLINE __m512i nearest_e2m1(__m512i magnitude) {
  const __m512 below = (__m512)_mm512_min_epu32(magnitude, _mm512_set1_epi32(0x3f800000));
  const __m512i halves = _mm512_cvtps_epi32(_mm512_mul_ps(below, _mm512_set1_ps(2.0f)));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 22), _mm512_set1_epi32(1));
  const __m512i upper = _mm512_srai_epi32(
      _mm512_add_epi32(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(0x3f000000 - 0x1fffff)), odd), 22);
  return _mm512_max_epi32(halves, upper);
}

/// encode_nearest() of a magnitude that is no more than the largest element's.
template <Element e>
OSPREY_INLINE __m512i nearest_code_of(__m512i magnitude) {
  constexpr ElementLayout l = element_layout(e);
  const __m512i lowest = _mm512_set1_epi32((128 - l.bias) << 23),
                own = _mm512_and_si512(magnitude, _mm512_set1_epi32(0x7f800000)),
                binade = _mm512_max_epi32(own, lowest),
                shifter = _mm512_add_epi32(binade, _mm512_set1_epi32((23 - l.mantissa) << 23));
  const __m512i rounded = (__m512i)_mm512_add_ps((__m512)magnitude, (__m512)shifter);
  return _mm512_add_epi32(_mm512_sub_epi32(rounded, shifter),
                          _mm512_srli_epi32(_mm512_sub_epi32(binade, lowest), 23 - l.mantissa));
}

/// encode_stochastic() likewise.
template <Element e>
OSPREY_INLINE __m512i stochastic_code_of(__m512i magnitude, __m512i draw) {
  constexpr ElementLayout l = element_layout(e);
  const __m512i lowest = _mm512_set1_epi32((128 - l.bias) << 23),
                own = _mm512_and_si512(magnitude, _mm512_set1_epi32(0x7f800000)),
                binade = _mm512_max_epi32(own, lowest);
  const __m512i below = _mm512_add_epi32(_mm512_srli_epi32(_mm512_sub_epi32(binade, own), 23),
                                         _mm512_set1_epi32(23 - l.mantissa)),
                most = _mm512_set1_epi32(31), bits = _mm512_min_epi32(below, most);
  // Shifts of 32 and more leave nothing.
  __m512i m =
      _mm512_or_si512(_mm512_and_si512(magnitude, _mm512_set1_epi32(0x7fffff)), _mm512_set1_epi32(0x800000));
  m = _mm512_srlv_epi32(m, _mm512_sub_epi32(below, bits));
  const __m512i half = _mm512_or_si512(_mm512_slli_epi32(draw, 1), _mm512_set1_epi32(1)),
                added = _mm512_sllv_epi32(half, _mm512_sub_epi32(bits, _mm512_set1_epi32(9)));
  return _mm512_add_epi32(_mm512_srlv_epi32(_mm512_add_epi32(m, added), bits),
                          _mm512_srli_epi32(_mm512_sub_epi32(binade, lowest), 23 - l.mantissa));
}

/// with_sign() of numbers with these bits.
template <Element e>
OSPREY_INLINE __m512i with_sign_of(__m512i code, __m512i bits) {
  constexpr ElementLayout l = element_layout(e);
  constexpr int sign = 1 << (l.bits - 1);
  if constexpr (l.kind == ElementLayout::integer) {
    const __m512i all = _mm512_srai_epi32(bits, 31);
    return _mm512_and_si512(_mm512_sub_epi32(_mm512_xor_si512(code, all), all),
                            _mm512_set1_epi32(2 * sign - 1));
  } else {
    // code | (bits >> (32 - l.bits) & sign)
    return _mm512_ternarylogic_epi32(code, _mm512_srli_epi32(bits, 32 - l.bits), _mm512_set1_epi32(sign),
                                     0xf8);
  }
}

/// Lanes shifted left by so many bits, or right where they are less than 0.
OSPREY_INLINE __m512i moved(__m512i v, int by) {
  return by < 0 ? _mm512_srli_epi32(v, static_cast<unsigned>(-by))
                : _mm512_slli_epi32(v, static_cast<unsigned>(by));
}

/// Words of consecutive codes, `count` for a lane, to 4 * count bytes of each row.
template <int count>
OSPREY_INLINE void store_words(uint8_t* to, int64_t stride, const __m512i (&words)[count]) {
  static_assert(count % 2 == 0);
#pragma GCC unroll 2
  for (int w = 0; w + 4 <= count; w += 4) {
    const __m512i a = _mm512_unpacklo_epi32(words[w], words[w + 1]),
                  b = _mm512_unpackhi_epi32(words[w], words[w + 1]),
                  c = _mm512_unpacklo_epi32(words[w + 2], words[w + 3]),
                  d = _mm512_unpackhi_epi32(words[w + 2], words[w + 3]);
    const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c),
                             _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      uint8_t* at = to + 4 * w + i * stride;
      const auto put = [&](int quarter, __m128i four) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 4 * quarter * stride), four);
      };
      put(0, _mm512_castsi512_si128(rows[i]));
      put(1, _mm512_extracti32x4_epi32(rows[i], 1));
      put(2, _mm512_extracti32x4_epi32(rows[i], 2));
      put(3, _mm512_extracti32x4_epi32(rows[i], 3));
    }
  }
  if constexpr (count % 4 == 2) {
    alignas(64) uint32_t last[2][16];
    _mm512_store_si512(last[0], words[count - 2]);
    _mm512_store_si512(last[1], words[count - 1]);
    for (int r = 0; r < 16; ++r) {
      const uint64_t both = last[0][r] | static_cast<uint64_t>(last[1][r]) << 32;
      memcpy(to + 4 * (count - 2) + r * stride, &both, 8);
    }
  }
}

}  // namespace osprey::cpu::OSPREY_ISA
