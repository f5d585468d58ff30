#include "kernels/cpu/isa/quantize_lanes.h"

#include "kernels/cpu/isa/vec.h"

#if defined(__AVX512F__)
#include "kernels/cpu/isa/lanes_codes.h"
#include "kernels/cpu/isa/lanes_numbers.h"
#endif

namespace osprey::cpu::OSPREY_ISA {

#if defined(__AVX512F__)

namespace {

constexpr int most_vectors = 256;  // of numbers in work: 16 KiB

/// Numbers of span columns from `col` on, those of group g from v[g * span] on, as quantize() rounds them.
void read_numbers(Vec* v, const LanesTile& a, int64_t col, int64_t span) {
  load_numbers(v, a, col, span);
  for (int64_t g = 0; g < a.groups; ++g) rotate(v + g * span, a, span);
}

/// What the elements of a block are multiplied by to be encoded, and its scale's code; lanes are rows.
struct Scales {
  alignas(64) float inverse[16];
  alignas(64) uint32_t codes[16];
};

template <Element e, ScaleRule rule>
OSPREY_INLINE void power_scales(Scales& s, const uint32_t* largest) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = e8m0_of_largest(e, rule, largest[i]);
    s.inverse[i] = block_scale_e8m0(code, largest[i]).inverse;
    s.codes[i] = code;
  }
}

/// 2^-unit_exponent() of numbers with these magnitude bits; any number where they are infinity's or above.
OSPREY_INLINE __m512 units_in_one(__m512i largest) {
  const __m512i exponent = _mm512_max_epi32(_mm512_srli_epi32(largest, 23), _mm512_set1_epi32(127 - 106));
  return (__m512)_mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * 127 + 20), exponent), 23);
}

/// floor(log2(2 s^2) / 2) of e8m0_of_deviation(), in units, from sums over 32 elements; of rows in 64-bit
/// lanes.
OSPREY_INLINE __m512i log2_of_scale(__m512i sum, __m512i squares) {
  const __m512i about_zero = _mm512_slli_epi64(squares, 5),
                about_mean = _mm512_sub_epi64(about_zero, _mm512_mul_epi32(sum, sum)),
                n2_variance = _mm512_max_epi64(about_mean, _mm512_srli_epi64(about_zero, 2));
  const double constant = 2 * 0.48707976 * 0.48707976 / (32 * 32);
  const __m512i bits = (__m512i)_mm512_mul_pd(_mm512_cvtepi64_pd(n2_variance), _mm512_set1_pd(constant));
  return _mm512_srai_epi64(_mm512_sub_epi64(_mm512_srli_epi64(bits, 52), _mm512_set1_epi64(1023)), 1);
}

/// Rule mse, which is of e2m1 alone.
OSPREY_INLINE void deviation_scales(Scales& s, const uint32_t* magnitudes, const Vec* v) {
  constexpr int64_t block = 32;
  const __m512i largest = _mm512_load_si512(magnitudes),
                infinity = _mm512_set1_epi32(static_cast<int>(float_infinity));
  const __m512 up = units_in_one(largest);
  __m512i sum = _mm512_setzero_si512(), even = sum, odd = sum;
#pragma GCC unroll 4
  for (int64_t k = 0; k < block; ++k) {
    const __m512i units = _mm512_cvttps_epi32(_mm512_mul_ps((__m512)v[k], up)),
                  above = _mm512_srli_epi64(units, 32);
    sum = _mm512_add_epi32(sum, units);
    even = _mm512_add_epi64(even, _mm512_mul_epi32(units, units));
    odd = _mm512_add_epi64(odd, _mm512_mul_epi32(above, above));
  }
  // Powers of two of even rows in the lower halves of lanes and of odd ones in the upper.
  const __m512i log2 =
      _mm512_mask_blend_epi32(0xaaaa, log2_of_scale(sum, even),
                              _mm512_slli_epi64(log2_of_scale(_mm512_srli_epi64(sum, 32), odd), 32));
  const __m512i unit = _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_srli_epi32((__m512i)up, 23));
  __m512i code = _mm512_add_epi32(_mm512_add_epi32(log2, unit), _mm512_set1_epi32(127));
  code = _mm512_max_epi32(code, _mm512_set1_epi32(static_cast<int>(clamp_e8m0(Element::e2m1, 0))));
  code = _mm512_min_epi32(code, _mm512_set1_epi32(static_cast<int>(clamp_e8m0(Element::e2m1, 255))));
  const __mmask16 none = _mm512_testn_epi32_mask(largest, largest),
                  nan = _mm512_cmpge_epu32_mask(largest, infinity);
  const __m512i inverse = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(254), code), 23);
  _mm512_store_si512(s.inverse,
                     _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(inverse, none, _mm512_setzero_si512()), nan,
                                           _mm512_set1_epi32(static_cast<int>(float_nan))));
  _mm512_store_si512(s.codes, _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(code, none, _mm512_setzero_si512()),
                                                    nan, _mm512_set1_epi32(static_cast<int>(e8m0_nan))));
}

template <Element e>
OSPREY_INLINE void find_e8m0(Scales& s, const uint32_t* largest, const Vec* v, ScaleRule rule) {
  if constexpr (e == Element::e2m1)
    if (rule == ScaleRule::mse) return deviation_scales(s, largest, v);
  switch (rule) {
    case ScaleRule::floor:
      return power_scales<e, ScaleRule::floor>(s, largest);
    case ScaleRule::ceil:
      return power_scales<e, ScaleRule::ceil>(s, largest);
    case ScaleRule::rceil:
      return power_scales<e, ScaleRule::rceil>(s, largest);
    default:
      return power_scales<e, ScaleRule::even>(s, largest);
  }
}

template <Element e>
OSPREY_INLINE void small_scales(Scales& s, const uint32_t* largest, TensorScale tensor, float stretch) {
#pragma omp simd
  for (int i = 0; i < 16; ++i) {
    const BlockScale scale = block_scale_e4m3(e, largest[i], tensor, stretch);
    s.inverse[i] = scale.inverse;
    s.codes[i] = scale.stored;
  }
}

template <Element e>
OSPREY_INLINE void small_scales_up(Scales& s, const uint32_t* largest, TensorScale tensor) {
#pragma omp simd
  for (int i = 0; i < 16; ++i) {
    const BlockScale scale = block_scale_e4m3_up(e, largest[i], tensor);
    s.inverse[i] = scale.inverse;
    s.codes[i] = scale.stored;
  }
}

/// Scales as error_in_units() takes them.
struct Candidate {
  explicit Candidate(const Scales& s) : inverse(_mm512_load_ps(s.inverse)) {
    alignas(64) float value[16];
#pragma omp simd
    for (int i = 0; i < 16; ++i) value[i] = decode_element(Element::e4m3, s.codes[i]);
    scale = _mm512_load_ps(value);
  }
  __m512 inverse, scale;
};

/// error_in_units() of magnitudes, with the sign turned where a number is negative. One rounding to fp32 is
/// what two over fp64 are: encoded numbers that are not 0 are within a factor of 32 of x and have 30 bits,
/// x has 24, so fp64 holds the difference exactly.
OSPREY_INLINE __m512i error_of(__m512 x, const Candidate& c, __m512 tensor_scale, __m512 up) {
  constexpr ElementLayout l = element_layout(Element::e2m1);
  const __m512i lowest = _mm512_set1_epi32((128 - l.bias) << 23);
  const __m512 a = _mm512_min_ps(_mm512_mul_ps(x, c.inverse), _mm512_set1_ps(l.largest));
  const __m512i own = _mm512_and_si512((__m512i)a, _mm512_set1_epi32(0x7f800000));
  // As in encode_nearest(), but what is wanted is the number.
  const __m512 shifter =
      (__m512)_mm512_add_epi32(_mm512_max_epi32(own, lowest), _mm512_set1_epi32((23 - l.mantissa) << 23));
  const __m512 whole = _mm512_mul_ps(_mm512_sub_ps(_mm512_add_ps(a, shifter), shifter), c.scale);
  return _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_fmsub_ps(whole, tensor_scale, x), up));
}

/// For each row the better of the largest element at 6 and at 4.
OSPREY_INLINE void four_over_six(Scales& s, const uint32_t* largest, const Vec* v, TensorScale tensor) {
  constexpr int64_t block = 16;
  Scales four;
  small_scales<Element::e2m1>(s, largest, tensor, 1.0f);
  small_scales<Element::e2m1>(four, largest, tensor, 1.5f);
  const Candidate at_six(s), at_four(four);
  const __m512 up = units_in_one(_mm512_load_si512(largest)), down = _mm512_set1_ps(tensor.down);
  __m512i even = _mm512_setzero_si512(), odd = even;
#pragma GCC unroll 4
  for (int64_t k = 0; k < block; ++k) {
    const __m512 x = _mm512_abs_ps((__m512)v[k]);
    const __m512i p = error_of(x, at_six, down, up), q = error_of(x, at_four, down, up);
    // Differences of squares, of rows in 64-bit lanes.
    const __m512i sum = _mm512_add_epi32(p, q), difference = _mm512_sub_epi32(p, q);
    even = _mm512_add_epi64(even, _mm512_mul_epi32(sum, difference));
    odd = _mm512_add_epi64(odd,
                           _mm512_mul_epi32(_mm512_srli_epi64(sum, 32), _mm512_srli_epi64(difference, 32)));
  }
  const __m512i zero = _mm512_setzero_si512();
  const __m512i gains =
      _mm512_mask_blend_epi32(0xaaaa, _mm512_movm_epi64(_mm512_cmpgt_epi64_mask(even, zero)),
                              _mm512_movm_epi64(_mm512_cmpgt_epi64_mask(odd, zero)));
  const __mmask16 gain = _mm512_movepi32_mask(gains) &
                         _mm512_cmplt_epu32_mask(_mm512_load_si512(largest),
                                                 _mm512_set1_epi32(static_cast<int>(float_infinity)));
  _mm512_mask_store_ps(s.inverse, gain, _mm512_load_ps(four.inverse));
  _mm512_mask_store_epi32(s.codes, gain, _mm512_load_si512(four.codes));
}

template <Element e, ScaleType scale>
OSPREY_INLINE void find_scales(Scales& s, const Vec* v, const LanesTile& a) {
  constexpr int64_t block = scale == ScaleType::e8m0 ? 32 : 16;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512(), other = most;
#pragma GCC unroll 4
  for (int64_t k = 0; k < block; k += 2) {
    most = _mm512_max_epi32(most, _mm512_and_si512((__m512i)v[k], magnitude));
    other = _mm512_max_epi32(other, _mm512_and_si512((__m512i)v[k + 1], magnitude));
  }
  alignas(64) uint32_t largest[16];
  _mm512_store_si512(largest, _mm512_max_epi32(most, other));
  if constexpr (scale == ScaleType::e8m0)
    find_e8m0<e>(s, largest, v, a.rule);
  else if (e == Element::e2m1 && a.rule == ScaleRule::four_over_six)
    four_over_six(s, largest, v, a.tensor);
  else if (a.rule == ScaleRule::rceil)
    small_scales_up<e>(s, largest, a.tensor);
  else
    small_scales<e>(s, largest, a.tensor, 1.0f);
}

/// Bits of 32 columns of 16 rows, `s` being the scales of their blocks: 1 where no number was clipped.
template <Element e, int blocks>
OSPREY_INLINE void write_mask(uint8_t* mask, const Vec* v, const Scales (&s)[blocks], const LanesTile& a) {
  constexpr int columns = static_cast<int>(lanes_step);
  const __m512 largest = _mm512_set1_ps(element_layout(e).largest);
  __m512i kept = _mm512_setzero_si512();
#pragma GCC unroll 2
  for (int b = 0; b < blocks; ++b) {
    const __m512 inverse = _mm512_load_ps(s[b].inverse);
#pragma GCC unroll 32
    for (int k = b * columns / blocks; k < (b + 1) * columns / blocks; ++k) {
      const __m512 magnitude = _mm512_abs_ps(_mm512_mul_ps((__m512)v[k], inverse));
      kept = _mm512_mask_or_epi32(kept, _mm512_cmp_ps_mask(magnitude, largest, _CMP_LE_OQ), kept,
                                  _mm512_set1_epi32(static_cast<int32_t>(1u << k)));
    }
  }
  alignas(64) uint32_t masks[16];
  _mm512_store_si512(masks, kept);
  for (int r = 0; r < 16; ++r) memcpy(mask + r * a.mask_stride, masks + r, 4);
}

/// Codes of 32 columns of 16 rows, `stride` bytes apart; `first` is the draw of the first number of the top
/// row.
template <Element e, bool stochastic, int blocks>
OSPREY_INLINE void write_codes(uint8_t* codes, int64_t stride, const Vec* v, const Scales (&s)[blocks],
                               const LanesTile& a, uint64_t first) {
  constexpr int bits = element_bits(e), columns = static_cast<int>(lanes_step), count = bits * columns / 32;
  __m512i draws[2][4];
  if constexpr (stochastic) draw_block(draws, a, first);
  const __m512 largest = _mm512_set1_ps(element_layout(e).largest);
  __m512i words[count] = {};
#pragma GCC unroll 2
  for (int b = 0; b < blocks; ++b) {
    const __m512 inverse = _mm512_load_ps(s[b].inverse);
#pragma GCC unroll 32
    for (int k = b * columns / blocks; k < (b + 1) * columns / blocks; ++k) {
      const __m512 scaled = _mm512_mul_ps((__m512)v[k], inverse);
      // The smaller magnitude, without a sign.
      const __m512 most = _mm512_range_ps(scaled, largest, 0b1010);
      __m512i draw = _mm512_setzero_si512();
      if constexpr (stochastic) {
        constexpr int to = e == Element::e2m1 ? e2m1_fraction - 8 : 0;
        const __m512i four = draws[k / 16][k % 16 / 4];
        draw = _mm512_and_si512(moved(four, to - 8 * (k % 4)), _mm512_set1_epi32(255 << to));
      }
      __m512i& word = words[k * bits / 32];
      const int at = k * bits % 32;
      if constexpr (e == Element::e2m1) {
        __m512i code;
        if constexpr (stochastic)
          code = moved(_mm512_add_epi32(e2m1_with_fraction(most), draw), at - e2m1_fraction);
        else
          code = moved(nearest_e2m1((__m512i)most), at);
        const __m512i sign = moved((__m512i)scaled, at - 28);
        // mask ? code : sign, and word | (code & its four bits)
        code = _mm512_ternarylogic_epi32(_mm512_set1_epi32(7 << at), code, sign, 0xca);
        word =
            _mm512_ternarylogic_epi32(word, code, _mm512_set1_epi32(static_cast<int32_t>(15u << at)), 0xf8);
      } else {
        const __m512i code = with_sign_of<e>(
            stochastic ? stochastic_code_of<e>((__m512i)most, draw) : nearest_code_of<e>((__m512i)most),
            (__m512i)scaled);
        word = _mm512_or_si512(word, _mm512_slli_epi32(code, static_cast<unsigned>(at)));
        if (at + bits > 32) {
          __m512i& next = words[(k * bits / 32 + 1) % count];
          next = _mm512_or_si512(next, _mm512_srli_epi32(code, static_cast<unsigned>(32 - at)));
        }
      }
    }
    const __mmask16 live = _mm512_cmp_ps_mask(inverse, _mm512_setzero_ps(), _CMP_GT_OQ);
#pragma GCC unroll 8
    for (int w = b * count / blocks; w < (b + 1) * count / blocks; ++w)
      words[w] = _mm512_maskz_mov_epi32(live, words[w]);
  }
  store_words(codes, stride, words);
}

/// Rows of `width` bytes from one matrix to another, strides in bytes.
OSPREY_INLINE void copy_rows(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride,
                             int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, to += to_stride, from += from_stride) {
    int64_t i = 0;
    for (; i + 64 <= width; i += 64) _mm512_storeu_si512(to + i, _mm512_load_si512(from + i));
    const __mmask64 rest = (__mmask64{1} << (width - i)) - 1;
    if (i < width) _mm512_mask_storeu_epi8(to + i, rest, _mm512_load_si512(from + i));
  }
}

/// Codes and scales are put together in the nearest cache: rows of y are often a power of two apart, where
/// few of their lines can be kept.
template <Element e, ScaleType scale, bool stochastic>
void quantize_tile(const LanesTile& a) {
  constexpr int bits = element_bits(e), blocks = scale == ScaleType::e8m0 ? 1 : 2;
  constexpr int64_t code_bytes = (lanes_cols * bits / 8 + 63) / 64 * 64, scale_bytes = 64,
                    most_rows = lanes_rows * lanes_most_groups;
  alignas(64) Vec numbers[most_vectors];
  alignas(64) uint8_t codes[most_rows * code_bytes], scales[most_rows * scale_bytes];
  const int64_t span = a.size > lanes_step ? a.size : lanes_step;
  const bool alternate = rows_alternate(a);
  const int64_t apart = alternate ? 2 : 1;  // rows of a group
  const LanesTile group = [&] {
    LanesTile t = a;
    t.draw_stride *= static_cast<uint64_t>(apart);
    t.mask_stride *= apart;
    return t;
  }();
  for (int64_t r = 0; r < lanes_rows * a.groups; ++r)
    for (int64_t i = 0; i < code_bytes; i += 64) __builtin_prefetch(a.codes + r * a.code_stride + i, 1);
  for (int64_t col = 0; col < a.cols; col += span) {
    read_numbers(numbers, a, col, span);
    for (int64_t g = 0; g < a.groups; ++g) {
      const int64_t top = alternate ? g : lanes_rows * g;
      for (int64_t k = 0; k < span; k += lanes_step) {
        const Vec* v = numbers + g * span + k;
        const int64_t c = col + k;
        Scales s[blocks];
        for (int b = 0; b < blocks; ++b) find_scales<e, scale>(s[b], v + 16 * b, a);
        uint8_t* to = scales + top * scale_bytes + c / lanes_step * blocks;
        for (int64_t r = 0; r < lanes_rows; ++r, to += apart * scale_bytes)
          for (int b = 0; b < blocks; ++b) to[b] = static_cast<uint8_t>(s[b].codes[r]);
        write_codes<e, stochastic>(
            codes + top * code_bytes + c * bits / 8, apart * code_bytes, v, s, group,
            a.first_draw + static_cast<uint64_t>(top) * a.draw_stride + static_cast<uint64_t>(c));
        if (a.mask) write_mask<e>(a.mask + top * a.mask_stride + c / 8, v, s, group);
      }
    }
  }
  copy_rows(a.codes, a.code_stride, codes, code_bytes, lanes_rows * a.groups, a.cols * bits / 8);
  copy_rows(a.scales, a.scale_stride, scales, scale_bytes, lanes_rows * a.groups,
            a.cols / lanes_step * blocks);
}

template <Element e, ScaleType scale>
void quantize_format(const LanesTile& a) {
  a.stochastic ? quantize_tile<e, scale, true>(a) : quantize_tile<e, scale, false>(a);
}

void quantize(const LanesTile& a) {
  if (a.scale == ScaleType::e4m3)
    return a.element == Element::e2m1 ? quantize_format<Element::e2m1, ScaleType::e4m3>(a)
                                      : quantize_format<Element::int4, ScaleType::e4m3>(a);
  switch (a.element) {
    case Element::e2m1:
      return quantize_format<Element::e2m1, ScaleType::e8m0>(a);
    case Element::e2m3:
      return quantize_format<Element::e2m3, ScaleType::e8m0>(a);
    case Element::e3m2:
      return quantize_format<Element::e3m2, ScaleType::e8m0>(a);
    case Element::e4m3:
      return quantize_format<Element::e4m3, ScaleType::e8m0>(a);
    case Element::e5m2:
      return quantize_format<Element::e5m2, ScaleType::e8m0>(a);
    case Element::int4:
      return quantize_format<Element::int4, ScaleType::e8m0>(a);
    default:
      return quantize_format<Element::int8, ScaleType::e8m0>(a);
  }
}

uint32_t largest(const LanesTile& a) {
  alignas(64) Vec numbers[most_vectors];
  const int64_t span = a.size > lanes_step ? a.size : lanes_step;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff),
                infinity = _mm512_set1_epi32(static_cast<int>(float_infinity));
  __m512i most[2] = {};
  for (int64_t col = 0; col < a.cols; col += span) {
    read_numbers(numbers, a, col, span);
    for (int64_t k = 0; k < a.groups * span; k += 2)
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512i all = _mm512_and_si512((__m512i)numbers[k + i], magnitude);
        most[i] = _mm512_mask_max_epi32(most[i], _mm512_cmplt_epi32_mask(all, infinity), most[i], all);
      }
  }
  return _mm512_reduce_max_epu32(_mm512_max_epi32(most[0], most[1]));
}

}  // namespace

extern const LanesTable lanes_table;
const LanesTable lanes_table = {quantize, largest};

#else

extern const LanesTable lanes_table;
const LanesTable lanes_table = {nullptr, nullptr};

#endif

}  // namespace osprey::cpu::OSPREY_ISA
