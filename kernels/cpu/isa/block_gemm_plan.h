#pragma once
// How the engines for integer elements share out their work and memory, how engines read codes and scales,
// and how they write y; for kernels/cpu/isa/block_gemm_integer.cpp, block_gemm_tiles.cpp and
// block_gemm_bf16_tiles.cpp, AVX-512 with bf16 only.

#include "kernels/cpu/isa/block_gemm_integer.h"
#include "kernels/cpu/isa/vec.h"

namespace osprey::cpu::avx512_bf16 {

constexpr int64_t span = 512;  // k of b that is unpacked at a time
constexpr int64_t group = 32;  // rows of a, and columns of b, that are multiplied together
constexpr int64_t step = 64;   // k of a tile
constexpr int64_t step_bytes = group * step;
constexpr int64_t most_wide = 4;
constexpr float largest_float = 3.40282347e38f;
constexpr int folded_blocks = 8, most_parts = folded_blocks, most_shift = 3;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline __mmask64 mask64(int64_t n) { return n >= 64 ? ~__mmask64{0} : n <= 0 ? 0 : (__mmask64{1} << n) - 1; }
inline __mmask16 mask16(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

struct Plan {
  bool fold;       // eight blocks with their scales as int8
  int64_t parts;   // at most
  int64_t chunk;   // k of one int32 sum
  int64_t chunks;  // in k
  int64_t steps;   // of 64 in k
  int64_t held;    // rows of a, whole groups
  int64_t wide;    // groups of columns that are written together, see wide_of()
  int b_offset;    // what makes b unsigned, for dot products; else 0
};

// Groups of columns that are written together: they hold whole groups of a rotation.
inline int64_t wide_of(const BlockGemm& g) { return g.turn_size > 2 * group ? most_wide : 2; }

inline bool folds(const BlockLayout& l) {
  return element_bits(l.element) == 4 && l.scale == ScaleType::e8m0 && l.block == 32;
}

inline Plan plan_of(const BlockGemm& g, bool with_tiles) {
  Plan p{};
  p.fold = with_tiles && folds(g.a) && folds(g.b);
  p.parts = p.fold ? most_parts : 1;
  p.chunk = p.fold ? folded_blocks * g.a.block : g.a.block ? g.a.block : whole_row_block;
  p.chunks = ceil_div(g.k, p.chunk);
  p.steps = ceil_div(g.k, step);
  const int64_t fits = (1 << 20) / (p.steps * step) / group * group;
  p.held = least(ceil_div(g.rows, group) * group, fits < 64 ? 64 : fits > 512 ? 512 : fits);
  p.wide = wide_of(g);
  p.b_offset = with_tiles ? 0 : g.b.element == Element::e2m1 ? 12 : g.b.element == Element::int4 ? 8 : 128;
  return p;
}

// Working memory; all of it aligned to 64 bytes.
struct Memory {
  int8_t* a;         // [part][group][step][32 rows][64]
  float* a_scales;   // [group][chunk][part][32 rows], times both units
  int32_t* a_sums;   // [group][chunk][32 rows]: -b_offset times the sum of a
  int32_t* a_parts;  // [group][chunk]
  uint8_t* b;        // [part][panel][span / 4][16 columns][4]
  float* b_scales;   // [chunk][part][32 columns]
  int32_t* b_parts;  // [chunk]
  float* sums;       // [wide][row][32]
  int32_t* tiles;    // [2][2 x 2][16][16]
  int64_t bytes;
};

inline Memory memory_of(const Plan& p, void* buffer) {
  Memory m{};
  char* at = static_cast<char*>(buffer);
  const auto take = [&](int64_t bytes) {
    char* here = at;
    at += (bytes + 63) / 64 * 64;
    return here;
  };
  const int64_t groups = p.held / group, span_chunks = span / p.chunk;
  m.a = reinterpret_cast<int8_t*>(take(p.parts * groups * p.steps * step_bytes));
  m.a_scales = reinterpret_cast<float*>(take(groups * p.chunks * p.parts * group * 4));
  m.a_sums = reinterpret_cast<int32_t*>(take(groups * p.chunks * group * 4));
  m.a_parts = reinterpret_cast<int32_t*>(take(groups * p.chunks * 4));
  m.b = reinterpret_cast<uint8_t*>(take(p.parts * span * group));
  m.b_scales = reinterpret_cast<float*>(take(span_chunks * p.parts * group * 4));
  m.b_parts = reinterpret_cast<int32_t*>(take(span_chunks * 4));
  m.sums = reinterpret_cast<float*>(take(p.wide * p.held * group * 4));
  m.tiles = reinterpret_cast<int32_t*>(take(2 * 4 * 16 * 16 * 4));
  m.bytes = at - static_cast<char*>(buffer);
  return m;
}

inline __m512i evens_first() { return _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200); }

// Integers of 4-bit codes plus `offset`, in every 128-bit lane.
inline __m512i lookup(Element e, int offset) {
  alignas(16) uint8_t t[16];
  for (uint32_t code = 0; code < 16; ++code)
    t[code] = static_cast<uint8_t>(static_cast<int>(decode_element(e, code) / unit_of(e)) + offset);
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(t)));
}

// What unpacking needs: integers of 4-bit codes; of 8-bit ones an order of bytes (a), or what to xor (b).
inline __m512i a_lookup(const BlockGemm& g) {
  return element_bits(g.a.element) == 8 ? evens_first() : lookup(g.a.element, 0);
}
inline __m512i b_lookup(const BlockGemm& g, int offset) {
  return element_bits(g.b.element) == 8 ? _mm512_set1_epi8(static_cast<char>(offset))
                                        : lookup(g.b.element, offset);
}

// (x | y) & nibbles.
inline __m512i nibbles_of(__m512i x, __m512i y) {
  return _mm512_ternarylogic_epi64(x, y, _mm512_set1_epi8(15), 0xa8);
}
inline __m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i x) { return low_nibbles(_mm512_srli_epi32(x, 4)); }

// 64 codes of 4 bits, as bytes.
inline __m512i spread(const uint8_t* codes, int64_t count) {
  const __m256i packed = count >= 64
                             ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes))
                             : _mm256_maskz_loadu_epi8(static_cast<__mmask32>(mask64(count / 2)), codes);
  const __m512i words = _mm512_cvtepu32_epi64(packed);
  return nibbles_of(words, _mm512_slli_epi64(words, 28));
}

inline __m512 scales_e8m0(__m512i codes) {
  __m512i f = _mm512_slli_epi32(codes, 23);
  f = _mm512_mask_mov_epi32(f, _mm512_testn_epi32_mask(codes, codes), _mm512_set1_epi32(0x00400000));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(f, _mm512_cmpeq_epi32_mask(codes, _mm512_set1_epi32(255)),
                                                   _mm512_set1_epi32(0x7fc00000)));
}

inline __m512i bytes16(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

struct ScaleTable {
  float e4m3[256];
  explicit ScaleTable(ScaleType type) {
    if (type == ScaleType::e4m3)
      for (uint32_t code = 0; code < 256; ++code) e4m3[code] = decode_scale(type, code);
  }
};

// The scales of 16 columns in block i of a panel.
inline __m512 panel_scales(const BlockLayout& b, const ScaleTable& table, const uint8_t* scales, int64_t i) {
  if (b.block == 0) i = 0;
  if (b.scale == ScaleType::e8m0) return scales_e8m0(bytes16(scales + 16 * i));
  if (b.scale == ScaleType::f32) return _mm512_loadu_ps(scales + 64 * i);
  return _mm512_i32gather_ps(bytes16(scales + 16 * i), table.e4m3, 4);
}

inline float scale_of(const BlockLayout& l, const ScaleTable& table, const uint8_t* scales, int64_t i) {
  if (l.block == 0) i = 0;
  if (l.scale == ScaleType::e4m3) return table.e4m3[scales[i]];
  uint32_t stored = l.scale == ScaleType::e8m0 ? scales[i] : 0;
  if (l.scale == ScaleType::f32) memcpy(&stored, scales + 4 * i, 4);
  return decode_scale(l.scale, stored);
}
// What 16 columns of a row at `at` become: sums scaled by f, and what was there if it is added to.
inline __m512 result(const BlockGemm& g, const char* at, __mmask16 mask, __m512 f, __m512 sum) {
  if (!g.add) return _mm512_mul_ps(sum, f);
  const __m512 old = g.y_is_f32 ? _mm512_maskz_loadu_ps(mask, at)
                                : _mm512_castsi512_ps(_mm512_slli_epi32(
                                      _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at)), 16));
  return _mm512_fmadd_ps(sum, f, old);
}

// The upper half of a lane is the nearest bf16; what the instruction for it does to denormals is not wanted.
inline __m512i bf16_on_top(__m512 y) {
  const __m512i u = _mm512_castps_si512(y),
                odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1)),
                rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q), u,
                              _mm512_set1_epi32(0x400000));
}

// 16 columns of a row, scaled by f.
inline void finish(const BlockGemm& g, char* at, __mmask16 mask, __m512 f, __m512 sum) {
  const __m512 y = result(g, at, mask, f, sum);
  if (g.y_is_f32) return _mm512_mask_storeu_ps(at, mask, y);
  const __m256i bits = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_on_top(y), 16));
  if (mask == 0xffff)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), bits);
  else
    _mm256_mask_storeu_epi16(at, mask, bits);
}

// 32 columns of bf16, none of which is past the end.
inline void finish_two(const BlockGemm& g, char* at, const __m512* f, const float* sums) {
  const __m512 left = result(g, at, 0xffff, f[0], _mm512_load_ps(sums)),
               right = result(g, at + 32, 0xffff, f[1], _mm512_load_ps(sums + 16));
  alignas(64) constexpr uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                              33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(
      at, _mm512_permutex2var_epi16(bf16_on_top(left), _mm512_load_si512(upper), bf16_on_top(right)));
}

inline char* y_at(const BlockGemm& g, int64_t row, int64_t column) {
  return g.y + row * g.y_row_bytes + column * (g.y_is_f32 ? 4 : 2);
}

inline __m512 factors(const BlockGemm& g, const uint8_t* panel) {
  return _mm512_mul_ps(_mm512_set1_ps(g.factor), _mm512_loadu_ps(panel + block_panel_bytes(g.b, g.k) - 64));
}

// Writes columns [column, end), at most wide_of() groups, of rows [row, row + rows) from sums [group of
// columns][held rows][32], and leaves zeros there. y's lines are far apart: those of a row are asked for some
// rows before they are written.
void finish_panels(const BlockGemm& g, float* sums, int64_t held, int64_t row, int64_t rows, int64_t column,
                   int64_t end);

// The panels of `group` columns from `column` on.
struct PanelPair {
  const uint8_t* panels[2];
  PanelPair(const BlockGemm& g, int64_t column) {
    const int64_t bytes = block_panel_bytes(g.b, g.k);
    panels[0] = g.b_panels + column / 16 * bytes;
    panels[1] = column + 16 < g.columns ? panels[0] + bytes : panels[0];
  }
};

}  // namespace osprey::cpu::avx512_bf16
