#include "kernels/cpu/isa/packed_tiles.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>

#include "kernels/cpu/isa/tile_config.h"
#endif

namespace osprey::cpu::OSPREY_ISA {

namespace {

#if defined(__AVX512BF16__)

/// Scales with which every number of e2m1 is a normal bf16: the exponent of a number may be added to.
constexpr int least_scale = 2, most_scale = 252;

void any_block(bf16* w, const uint8_t* codes, uint8_t scale) {
  for (int i = 0; i < 32; ++i)
    w[i] = to_bf16(decode_element(Element::e2m1, codes[i / 2] >> i % 2 * 4 & 15u) * decode_e8m0(scale));
}

void mxfp4_numbers(bf16* w, const uint8_t* codes, const uint8_t* scales, int64_t blocks) {
  alignas(64) uint16_t values[32];
  for (uint32_t i = 0; i < 32; ++i) values[i] = to_bf16(decode_element(Element::e2m1, i & 15)).bits;
  const __m512i table = _mm512_load_si512(values), magnitude = _mm512_set1_epi16(0x7fff);
  for (int64_t b = 0; b < blocks; ++b, w += 32, codes += 16) {
    if (scales[b] < least_scale || scales[b] > most_scale) {
      any_block(w, codes, scales[b]);
      continue;
    }
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    // An index is five bits: values come twice, so that a neighbour's lowest bit does not matter.
    const __m512i number =
        _mm512_permutexvar_epi16(_mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12)), table);
    const __m512i exponent = _mm512_set1_epi16(static_cast<int16_t>((scales[b] - 127) * 128));
    const __mmask32 some = _mm512_test_epi16_mask(number, magnitude);
    _mm512_storeu_si512(w, _mm512_mask_add_epi16(number, some, number, exponent));
  }
}

/// Two sets of 16 floats as one of 32 bf16 numbers, in turn.
inline __m512i in_turn(__m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even)),
                high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

void numbers(bf16* w, const uint8_t* codes, const float* scales, int64_t block, float whole, int64_t n,
             Element e) {
  alignas(64) float values[16];
  for (uint32_t i = 0; i < 16; ++i) values[i] = decode_element(e == Element::int8 ? Element::int4 : e, i);
  const __m512 table = _mm512_load_ps(values), all = _mm512_set1_ps(whole), step = _mm512_set1_ps(1.0f / 64);
  const __m512i low_half = _mm512_set1_epi32(15);
  const int shift = block < n ? __builtin_ctzll(static_cast<uint64_t>(block)) : 62;
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 first = _mm512_set1_ps(scales[i >> shift]),
                 second = _mm512_set1_ps(scales[(i + 16) >> shift]);
    if (e == Element::int8) {
      const auto part = [&](int64_t at, __m512 scale) __attribute__((always_inline)) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + at));
        const __m512 k = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), step);
        return _mm512_mul_ps(_mm512_mul_ps(k, scale), all);
      };
      _mm512_storeu_si512(w + i, (__m512i)_mm512_cvtne2ps_pbh(part(i + 16, second), part(i, first)));
      continue;
    }
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i / 2)));
    const __m512 scale = _mm512_mask_blend_ps(0xff00, first, second);
    const auto part = [&](__m512i code) __attribute__((always_inline)) {
      return _mm512_mul_ps(_mm512_mul_ps(_mm512_permutexvar_ps(code, table), scale), all);
    };
    _mm512_storeu_si512(w + i,
                        in_turn(part(_mm512_and_si512(bytes, low_half)), part(_mm512_srli_epi32(bytes, 4))));
  }
}

/// A half float with the bits of an e4m3 number, four more exponents below it, is 2^-8 of it.
void e4m3_scales(float* scales, const uint8_t* codes, int64_t n) {
  const __m256i rest = _mm256_set1_epi16(0x7f), sign = _mm256_set1_epi16(0x80);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 here = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
    const __m256i code = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(here, codes + i)),
                  magnitude = _mm256_and_si256(code, rest);
    const __m256i half =
        _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), _mm256_slli_epi16(_mm256_and_si256(code, sign), 8));
    const __m512 v = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256));
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, rest);
    _mm512_mask_storeu_ps(scales + i, here,
                          _mm512_mask_blend_ps(nan, v, _mm512_set1_ps(bits_float(float_nan))));
  }
}

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")

// Tiles 0 and 1 are sums, 2 and 3 rows of weights, 4 pairs of k of x: all of 16 rows of 64 bytes.
void begin() {
  TileConfig config;
  for (int i = 0; i < 5; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  memory_is_read(&config);
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
}

void multiply(const bf16* w, int64_t stride, const uint32_t* x, int64_t steps) {
  memory_is_read(w);
  memory_is_read(x);
  for (int64_t s = 0; s < steps; ++s, w += tile_depth, x += tile_depth / 2 * tile_rows) {
    _tile_loadd(4, x, 64);
    _tile_loadd(2, w, stride * 2);
    _tile_dpbf16ps(0, 2, 4);
    _tile_loadd(3, w + 16 * stride, stride * 2);
    _tile_dpbf16ps(1, 3, 4);
  }
}

void end(float* sums) {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 16 * tile_rows, 64);
  _tile_release();
  memory_is_read(sums);
}

#pragma GCC pop_options

#endif

}  // namespace

extern const PackedTilesTable packed_tiles_table;
#if defined(__AVX512BF16__)
const PackedTilesTable packed_tiles_table = {mxfp4_numbers, numbers, e4m3_scales, begin, multiply, end};
#else
const PackedTilesTable packed_tiles_table = {};
#endif

}  // namespace osprey::cpu::OSPREY_ISA
