#include "kernels/cpu/isa/mxfp4_lanes.h"

#include "kernels/cpu/isa/vec.h"

#if defined(__AVX512F__)
#include "kernels/cpu/isa/transpose16.h"
#endif

namespace osprey::cpu::OSPREY_ISA {

#if defined(__AVX512F__)

namespace {

using Codec = Mxfp4Lanes;
constexpr int64_t block = 32;
constexpr int most_vectors = 256;  // of numbers in work: 16 KiB

/// A block's elements are multiplied by this to be encoded; lanes are rows.
struct Scales {
  alignas(64) float inverse[16];
  uint8_t codes[16];
};

// Numbers of span columns from `col` on, into v[group * span + k].

template <bool bf16_rows>
OSPREY_INLINE void load_rows(Vec* v, const Codec& a, int64_t col, int64_t span) {
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

OSPREY_INLINE void load_columns_f32(Vec* v, const Codec& a, int64_t col, int64_t span) {
  for (int64_t k = 0; k < span; ++k) {
    const char* row = static_cast<const char*>(a.x) + (col + k) * a.x_stride;
    __builtin_prefetch(row + 64, 0, 2);
    v[k] = load(reinterpret_cast<const float*>(row));
  }
}

OSPREY_INLINE void load_columns_bf16(Vec* v, const Codec& a, int64_t col, int64_t span) {
  for (int64_t k = 0; k < span; ++k) {
    const char* row = static_cast<const char*>(a.x) + (col + k) * a.x_stride;
    __builtin_prefetch(row + 64, 0, 2);
    v[k] = load(reinterpret_cast<const bf16*>(row));
    if (a.groups > 1) v[span + k] = load(reinterpret_cast<const bf16*>(row) + 16);
  }
}

OSPREY_INLINE void load_columns_mxfp4(Vec* v, const Codec& a, int64_t col, int64_t span) {
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
      v[g * span + k] =
          (Vec)_mm512_permutexvar_ps(code, table) * splat(decode_e8m0(scales[(g + a.x_half) / 2]));
    }
  }
}

OSPREY_INLINE void load_numbers(Vec* v, const Codec& a, int64_t col, int64_t span) {
  switch (a.source) {
    case Codec::rows_f32:
      return load_rows<false>(v, a, col, span);
    case Codec::rows_bf16:
      return load_rows<true>(v, a, col, span);
    case Codec::columns_f32:
      return load_columns_f32(v, a, col, span);
    case Codec::columns_bf16:
      return load_columns_bf16(v, a, col, span);
    default:
      return load_columns_mxfp4(v, a, col, span);
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

OSPREY_INLINE void rotate(Vec* v, const Codec& a, int64_t span) {
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

template <ScaleRule rule>
OSPREY_INLINE void power_scales(Scales& s, const uint32_t* largest) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = e8m0_of_largest(Element::e2m1, rule, largest[i]);
    s.inverse[i] = block_scale_e8m0(code, largest[i]).inverse;
    s.codes[i] = static_cast<uint8_t>(code);
  }
}

OSPREY_INLINE void deviation_scales(Scales& s, const uint32_t* largest, const Vec* v) {
  alignas(64) float up[16];
  for (int i = 0; i < 16; ++i)
    up[i] = largest[i] < float_infinity ? power_of_two(-unit_exponent(largest[i])) : 0.0f;
  const Vec ups = load(up);
  __m512i sum = _mm512_setzero_si512(), even = sum, odd = sum;
  for (int64_t k = 0; k < block; ++k) {
    const __m512i units = _mm512_cvttps_epi32((__m512)(v[k] * ups)), above = _mm512_srli_epi64(units, 32);
    sum = _mm512_add_epi32(sum, units);
    even = _mm512_add_epi64(even, _mm512_mul_epi32(units, units));
    odd = _mm512_add_epi64(odd, _mm512_mul_epi32(above, above));
  }
  alignas(64) int32_t sums[16];
  alignas(64) int64_t squares[2][8];
  _mm512_store_si512(sums, sum);
  _mm512_store_si512(squares[0], even);
  _mm512_store_si512(squares[1], odd);
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = e8m0_of_deviation(largest[i], block, sums[i], squares[i % 2][i / 2]);
    s.inverse[i] = block_scale_e8m0(code, largest[i]).inverse;
    s.codes[i] = static_cast<uint8_t>(code);
  }
}

OSPREY_INLINE void find_scales(Scales& s, const Vec* v, ScaleRule rule) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512(), other = most;
#pragma GCC unroll 4
  for (int64_t k = 0; k < block; k += 2) {
    most = _mm512_max_epi32(most, _mm512_and_si512((__m512i)v[k], magnitude));
    other = _mm512_max_epi32(other, _mm512_and_si512((__m512i)v[k + 1], magnitude));
  }
  alignas(64) uint32_t largest[16];
  _mm512_store_si512(largest, _mm512_max_epi32(most, other));
  switch (rule) {
    case ScaleRule::floor:
      return power_scales<ScaleRule::floor>(s, largest);
    case ScaleRule::ceil:
      return power_scales<ScaleRule::ceil>(s, largest);
    case ScaleRule::rceil:
      return power_scales<ScaleRule::rceil>(s, largest);
    case ScaleRule::mse:
      return deviation_scales(s, largest, v);
    default:
      return power_scales<ScaleRule::even>(s, largest);
  }
}

/// Draws of one block: word [g][i] of a lane has draws 8 g + 2 i and, above it, 8 g + 2 i + 1.
OSPREY_INLINE void draw_block(__m512i (&draws)[4][4], const Codec& a, uint64_t first) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i row = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                         _mm512_set1_epi64(static_cast<int64_t>(a.draw_stride / 8)));
  const __m512i low_words = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  for (int g = 0; g < 4; g += 2) {
    // Four chains: rows 0 to 7 and 8 to 15 of two groups. A 64-bit lane holds a 32-bit word; what is above it
    // reaches no later product.
    __m512i c0[4], c1[4], c2[4], c3[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint64_t base = first / 8 + static_cast<uint64_t>(g + i / 2) +
                            static_cast<uint64_t>(i % 2) * 8 * (a.draw_stride / 8);
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
    for (int i = 0; i < 2; ++i) {
      draws[g + i][0] = _mm512_permutex2var_epi32(c0[2 * i], low_words, c0[2 * i + 1]);
      draws[g + i][1] = _mm512_permutex2var_epi32(c1[2 * i], low_words, c1[2 * i + 1]);
      draws[g + i][2] = _mm512_permutex2var_epi32(c2[2 * i], low_words, c2[2 * i + 1]);
      draws[g + i][3] = _mm512_permutex2var_epi32(c3[2 * i], low_words, c3[2 * i + 1]);
    }
  }
}

/// Magnitude bits of scaled numbers to codes with 16 bits behind the point, and half of their last bit added:
/// with a draw added what is before the point is what encode_stochastic() finds. From 1 on a float's bits are
/// the code but for an offset; below, codes are the number of halves.
OSPREY_INLINE __m512i code_with_fraction(__m512i magnitude) {
  const __m512 below = (__m512)_mm512_min_epu32(magnitude, _mm512_set1_epi32(0x3f800000));
  const __m512i halves = _mm512_cvttps_epi32(_mm512_fmadd_round_ps(
      below, _mm512_set1_ps(0x1p17f), _mm512_set1_ps(0.5f), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
  const __m512i upper = _mm512_srai_epi32(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(0x3f000000 - 32)), 6);
  return _mm512_max_epi32(halves, upper);
}
/// The same to the nearest code, ties to the even one.
OSPREY_INLINE __m512i nearest_code(__m512i magnitude) {
  const __m512 below = (__m512)_mm512_min_epu32(magnitude, _mm512_set1_epi32(0x3f800000));
  const __m512i halves = _mm512_cvtps_epi32(_mm512_mul_ps(below, _mm512_set1_ps(2.0f)));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 22), _mm512_set1_epi32(1));
  const __m512i upper = _mm512_srai_epi32(
      _mm512_add_epi32(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(0x3f000000 - 0x1fffff)), odd), 22);
  return _mm512_max_epi32(halves, upper);
}

/// Words of eight codes each, four for a lane, to 16 bytes of each row.
OSPREY_INLINE void store_codes(uint8_t* to, int64_t stride, const __m512i (&words)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(words[0], words[1]), b = _mm512_unpackhi_epi32(words[0], words[1]),
                c = _mm512_unpacklo_epi32(words[2], words[3]), d = _mm512_unpackhi_epi32(words[2], words[3]);
  const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c),
                           _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    uint8_t* at = to + i * stride;
    const auto put = [&](int quarter, __m128i four) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 4 * quarter * stride), four);
    };
    put(0, _mm512_castsi512_si128(rows[i]));
    put(1, _mm512_extracti32x4_epi32(rows[i], 1));
    put(2, _mm512_extracti32x4_epi32(rows[i], 2));
    put(3, _mm512_extracti32x4_epi32(rows[i], 3));
  }
}

/// A block of 16 rows; draws from number first on, the top row's.
template <bool stochastic>
OSPREY_INLINE void encode_block(uint8_t* codes, uint8_t* mask, const Vec* v, const Scales& s, const Codec& a,
                                uint64_t first) {
  __m512i draws[4][4];
  if constexpr (stochastic) draw_block(draws, a, first);
  const __m512 inverse = _mm512_load_ps(s.inverse);
  const __mmask16 live = _mm512_cmp_ps_mask(inverse, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512i six = _mm512_set1_epi32(0x40c00000), magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i kept = _mm512_setzero_si512(), words[4];
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    __m512i word = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i bits = (__m512i)_mm512_mul_ps((__m512)v[8 * w + i], inverse);
      const __m512i all = _mm512_and_si512(bits, magnitude), most = _mm512_min_epu32(all, six);
      if (mask)
        kept = _mm512_mask_or_epi32(kept, _mm512_cmple_epu32_mask(all, six), kept,
                                    _mm512_set1_epi32(static_cast<int32_t>(1u << (8 * w + i))));
      // The code at bits 16 to 18, the sign above it.
      __m512i code;
      if constexpr (stochastic) {
        const __m512i pair = draws[w][i / 2];
        code = _mm512_add_epi32(
            code_with_fraction(most),
            i % 2 ? _mm512_srli_epi32(pair, 16) : _mm512_and_si512(pair, _mm512_set1_epi32(0xffff)));
      } else {
        code = _mm512_slli_epi32(nearest_code(most), 16);
      }
      // mask ? code : sign
      code = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x7ffff), code, _mm512_srli_epi32(bits, 12), 0xca);
      const int place = 4 * i - 16;
      code = place < 0 ? _mm512_srli_epi32(code, static_cast<unsigned>(place < 0 ? -place : 0))
                       : _mm512_slli_epi32(code, static_cast<unsigned>(place < 0 ? 0 : place));
      // word | (code & its four bits)
      word = _mm512_ternarylogic_epi32(word, code, _mm512_set1_epi32(static_cast<int32_t>(15u << (4 * i))),
                                       0xf8);
    }
    words[w] = _mm512_maskz_mov_epi32(live, word);
  }
  store_codes(codes, a.code_stride, words);
  if (!mask) return;
  alignas(64) uint32_t masks[16];
  _mm512_store_si512(masks, kept);
  for (int r = 0; r < 16; ++r) memcpy(mask + r * a.mask_stride, masks + r, 4);
}

template <bool stochastic>
void quantize_tile(const Codec& a) {
  alignas(64) Vec numbers[most_vectors];
  const int64_t span = a.size > block ? a.size : block;
  for (int64_t col = 0; col < a.cols; col += span) {
    load_numbers(numbers, a, col, span);
    for (int64_t g = 0; g < a.groups; ++g) {
      Vec* v = numbers + g * span;
      rotate(v, a, span);
      for (int64_t k = 0; k < span; k += block) {
        Scales s;
        const int64_t c = col + k, top = 16 * g;
        find_scales(s, v + k, a.rule);
        for (int64_t r = 0; r < 16; ++r) a.scales[(top + r) * a.scale_stride + c / block] = s.codes[r];
        uint8_t* mask = a.mask ? a.mask + top * a.mask_stride + c / 8 : nullptr;
        encode_block<stochastic>(
            a.codes + top * a.code_stride + c / 2, mask, v + k, s, a,
            a.first_draw + static_cast<uint64_t>(top) * a.draw_stride + static_cast<uint64_t>(c));
      }
    }
  }
}

void quantize(const Codec& a) {
  if (a.stochastic)
    quantize_tile<true>(a);
  else
    quantize_tile<false>(a);
}

}  // namespace

extern const Mxfp4LanesTable mxfp4_lanes_table;
const Mxfp4LanesTable mxfp4_lanes_table = {quantize};

#else

extern const Mxfp4LanesTable mxfp4_lanes_table;
const Mxfp4LanesTable mxfp4_lanes_table = {nullptr};

#endif

}  // namespace osprey::cpu::OSPREY_ISA
