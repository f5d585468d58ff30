// The engines for integer elements: dot products (VNNI) and tiles (AMX). Rows of a are unpacked to int8 once
// for some hundred of them, two panels of b to int8 for 512 k at a time, so that they stay in L1; sums over
// blocks come out of an engine in int32 and are added to fp32 sums in L2.
//
// All int8 is in one order of k: of every 8 first the even four, then the odd four, as nibbles come out
// of a word.

#include "kernels/cpu/isa/block_gemm_integer.h"

#if defined(OSPREY_ISA_avx512_bf16)

#include "kernels/cpu/isa/transpose16.h"

namespace osprey::cpu::avx512_bf16 {

namespace {

constexpr int64_t span = 512;  // k of b that is unpacked at a time
constexpr int64_t group = 32;  // rows of a, and columns of b, that are multiplied together
constexpr int64_t step = 64;   // k of a tile
constexpr int64_t step_bytes = group * step;
constexpr int64_t wide = 2;  // groups of columns that are written together
constexpr float largest_float = 3.40282347e38f;
constexpr int folded_blocks = 8, most_parts = folded_blocks, most_shift = 3;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__mmask64 mask64(int64_t n) { return n >= 64 ? ~__mmask64{0} : n <= 0 ? 0 : (__mmask64{1} << n) - 1; }
__mmask16 mask16(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

struct Plan {
  bool fold;       // eight blocks with their scales as int8
  int64_t parts;   // at most
  int64_t chunk;   // k of one int32 sum
  int64_t chunks;  // in k
  int64_t steps;   // of 64 in k
  int64_t held;    // rows of a, whole groups
  int b_offset;    // what makes b unsigned, for dot products; else 0
};

bool folds(const BlockLayout& l) {
  return is_integer(l.element) && l.scale == ScaleType::e8m0 && l.block == 32;
}

// What does not leave room for shifts is split: int8 is 16 times its upper 4 bits, signed, and its lower
// ones.
int digits_of(Element e) { return element_bits(e) / 4; }

Plan plan_of(const BlockGemm& g, bool with_tiles) {
  Plan p{};
  const int digits = digits_of(g.a.element) * digits_of(g.b.element);
  p.fold = with_tiles && folds(g.a) && folds(g.b) && digits <= 2;
  p.parts = p.fold ? most_parts * digits : 1;
  p.chunk = p.fold ? folded_blocks * g.a.block : g.a.block ? g.a.block : whole_row_block;
  p.chunks = ceil_div(g.k, p.chunk);
  p.steps = ceil_div(g.k, step);
  const int64_t fits = (1 << 20) / (p.steps * step) / group * group;
  p.held = least(ceil_div(g.rows, group) * group, fits < 64 ? 64 : fits > 512 ? 512 : fits);
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

Memory memory_of(const Plan& p, void* buffer) {
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
  m.sums = reinterpret_cast<float*>(take(wide * p.held * group * 4));
  m.tiles = reinterpret_cast<int32_t*>(take(2 * 4 * 16 * 16 * 4));
  m.bytes = at - static_cast<char*>(buffer);
  return m;
}

__m512i evens_first() { return _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200); }

// Integers of 4-bit codes plus `offset`, in every 128-bit lane.
__m512i lookup(Element e, int offset) {
  alignas(16) uint8_t t[16];
  for (uint32_t code = 0; code < 16; ++code)
    t[code] = static_cast<uint8_t>(static_cast<int>(decode_element(e, code) / unit_of(e)) + offset);
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(t)));
}

// What unpacking needs: integers of 4-bit codes; of 8-bit ones an order of bytes (a), or what to xor (b).
__m512i a_lookup(const BlockGemm& g) {
  return element_bits(g.a.element) == 8 ? evens_first() : lookup(g.a.element, 0);
}
__m512i b_lookup(const BlockGemm& g, int offset) {
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

float scale_of(const BlockLayout& l, const ScaleTable& table, const uint8_t* scales, int64_t i) {
  if (l.block == 0) i = 0;
  if (l.scale == ScaleType::e4m3) return table.e4m3[scales[i]];
  uint32_t stored = l.scale == ScaleType::e8m0 ? scales[i] : 0;
  if (l.scale == ScaleType::f32) memcpy(&stored, scales + 4 * i, 4);
  return decode_scale(l.scale, stored);
}

// Rows [begin, begin + count) of a, one group. Rows that do not exist count as zeros when `pad`.
void unpack_group(const BlockGemm& g, const Plan& p, const Memory& m, int64_t index, int64_t begin,
                  int64_t count, bool pad, __m512i values) {
  const ScaleTable table(g.a.scale);
  const bool bytes = element_bits(g.a.element) == 8;
  const float unit = scaled_units(1, g.a.element, g.b.element);
  int8_t* const to = m.a + index * p.steps * step_bytes;
  float* const scales = m.a_scales + index * p.chunks * group;
  int32_t* const sums = m.a_sums + index * p.chunks * group;
  memset(sums, 0, static_cast<size_t>(p.chunks * group) * 4);
  for (int64_t c = 0; c < p.chunks; ++c) m.a_parts[index * p.chunks + c] = 1;
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* codes = g.a_codes + (begin + r) * g.a_code_stride;
    for (int64_t s = 0; s < p.steps; ++s) {
      const int64_t left = g.k - s * step;
      const __m512i v =
          bytes ? _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(mask64(left), codes + s * step), values)
                : _mm512_shuffle_epi8(values, spread(codes + s * step / 2, left));
      _mm512_store_si512(to + s * step_bytes + r * step, v);
      if (p.b_offset == 0) continue;
      alignas(64) int32_t sixteens[16];  // every fourth: of 16 elements
      const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), v),
                    eights = _mm512_add_epi32(fours, _mm512_shuffle_epi32(fours, _MM_PERM_CDAB));
      _mm512_store_si512(sixteens, _mm512_add_epi32(eights, _mm512_shuffle_epi32(eights, _MM_PERM_BADC)));
      int32_t* const sum = sums + s * step / p.chunk * group + r;
      for (int64_t i = 0, k = 0; i < 4 && k < left; ++i, k += 16)
        sum[k / p.chunk * group] -= p.b_offset * sixteens[4 * i];
    }
    for (int64_t c = 0; c < p.chunks; ++c)
      scales[c * group + r] = scale_of(g.a, table, g.a_scales + (begin + r) * g.a_scale_stride, c) * unit;
  }
  if (!pad) return;
  for (int64_t r = count; r < group; ++r) {
    for (int64_t s = 0; s < p.steps; ++s)
      _mm512_store_si512(to + s * step_bytes + r * step, _mm512_setzero_si512());
    for (int64_t c = 0; c < p.chunks; ++c) scales[c * group + r] = 0;
  }
}

// k [begin, begin + span) of two panels; `values` as b_lookup() makes them.
void unpack_panels(const BlockGemm& g, const Plan& p, const Memory& m, const ScaleTable& table,
                   const uint8_t* const* panels, int64_t begin, __m512i values) {
  const bool bytes = element_bits(g.b.element) == 8;
  const int64_t eights = (least(g.k - begin, span) + 7) / 8,
                chunks = ceil_div(least(g.k - begin, span), p.chunk);
  for (int64_t half = 0; half < 2; ++half) {
    const uint8_t* from = panels[half] + begin / 8 * (bytes ? 128 : 64);
    uint8_t* to = m.b + half * span * 16;
    if (bytes)
      for (int64_t i = 0; i < 2 * eights; ++i)
        _mm512_store_si512(to + 64 * i, _mm512_xor_si512(_mm512_loadu_si512(from + 64 * i), values));
    else
      for (int64_t i = 0; i < eights; ++i) {
        const __m512i codes = _mm512_loadu_si512(from + 64 * i);
        _mm512_store_si512(to + 128 * i, _mm512_shuffle_epi8(values, low_nibbles(codes)));
        _mm512_store_si512(to + 128 * i + 64, _mm512_shuffle_epi8(values, high_nibbles(codes)));
      }
    const uint8_t* scales = panels[half] + block_panel_codes(g.b.element, g.k);
    for (int64_t c = 0; c < chunks; ++c)
      _mm512_store_ps(m.b_scales + c * group + half * 16,
                      panel_scales(g.b, table, scales, begin / p.chunk + c));
  }
  for (int64_t c = 0; c < chunks; ++c) m.b_parts[c] = 1;
}

inline __m512 rescaled(__m512i s, float a_scale, __m512 b_scale, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(_mm512_set1_ps(a_scale), b_scale), sum);
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

char* y_at(const BlockGemm& g, int64_t row, int64_t column) {
  return g.y + row * g.y_row_bytes + column * (g.y_is_f32 ? 4 : 2);
}

__m512 factors(const BlockGemm& g, const uint8_t* panel) {
  return _mm512_mul_ps(_mm512_set1_ps(g.factor), _mm512_loadu_ps(panel + block_panel_bytes(g.b, g.k) - 64));
}

// ---- dot products

// s += the products of unsigned b and signed a, four by four. GCC 12 copies every s twice around its
// intrinsic.
inline void add_dot(__m512i& s, __m512i b, __m512i a) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(s) : "v"(b), "v"(a));
}

inline __m512i word_of(const int8_t* a) {
  int32_t w;
  memcpy(&w, a, 4);
  return _mm512_set1_epi32(w);
}

// Adds one chunk of 8 rows times 32 columns.
inline void dot_tile(const int8_t* a, const int32_t* a_sums, const float* a_scales, const uint8_t* b,
                     const float* b_scales, int64_t begin, int64_t length, float* sums) {
  constexpr int rows = 8;
  __m512i s[rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) s[r][0] = s[r][1] = _mm512_set1_epi32(a_sums[r]);
  for (int64_t k = begin; k < begin + length;) {
    const int8_t* left = a + k / step * step_bytes + k % step;
    const int64_t count = least(step - k % step, begin + length - k);
    for (int64_t i = 0; i < count; i += 4) {
      const uint8_t* right = b + (k % span + i) * 16;
      const __m512i b0 = _mm512_load_si512(right), b1 = _mm512_load_si512(right + span * 16);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const __m512i w = word_of(left + i + r * step);
        add_dot(s[r][0], b0, w);
        add_dot(s[r][1], b1, w);
      }
    }
    k += count;
  }
  const __m512 scale0 = _mm512_load_ps(b_scales), scale1 = _mm512_load_ps(b_scales + 16);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    float* to = sums + r * group;
    _mm512_store_ps(to, rescaled(s[r][0], a_scales[r], scale0, _mm512_load_ps(to)));
    _mm512_store_ps(to + 16, rescaled(s[r][1], a_scales[r], scale1, _mm512_load_ps(to + 16)));
  }
}

void dot_span(const BlockGemm& g, const Plan& p, const Memory& m, float* sums, int64_t groups,
              int64_t begin) {
  const int64_t end = least(begin + span, (g.k + 7) / 8 * 8);
  for (int64_t i = 0; i < groups; ++i)
    for (int64_t k = begin, c = 0; k < end; k += p.chunk, ++c) {
      const int64_t at = (i * p.chunks + k / p.chunk) * group;
      for (int64_t r = 0; r < group; r += 8)
        dot_tile(m.a + i * p.steps * step_bytes + r * step, m.a_sums + at + r, m.a_scales + at + r, m.b,
                 m.b_scales + c * group, k, least(p.chunk, end - k), sums + (i * group + r) * group);
    }
}

// ---- tiles

#pragma GCC push_options
#pragma GCC target("avx512vbmi,amx-tile,amx-int8")

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// GCC's tile intrinsics do not say what memory they read.
inline void memory_is_read(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

// Tiles 0-3 are sums, 4 and 5 rows of a, 6 and 7 columns of b, of `depth` k.
void configure(int64_t depth) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth : 64);
    config.rows[i] = static_cast<uint8_t>(i >= 6 ? depth / 4 : 16);
  }
  memory_is_read(&config);
  _tile_loadconfig(&config);
}

// Eight blocks of 16 rows: which part each belongs to, how far its codes are shifted left there. Byte j % 4
// of a lane of [j / 4] is about block j.
struct Fold {
  int parts;
  __m512i shift[most_parts][2];   // times 16
  __m512i member[most_parts][2];  // all ones where the block is of this part
  __m512 scale[most_parts];
};

// code: of scales, for every block; nonzero: lanes whose block is not all zeros.
Fold fold_of(const __m512i* code, const __mmask16* nonzero, int blocks) {
  Fold f;
  __mmask16 left[folded_blocks], nan = 0;
  for (int j = 0; j < blocks; ++j) {
    const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(code[j], _mm512_set1_epi32(255));
    nan |= is_nan;
    left[j] = nonzero[j] & static_cast<__mmask16>(~is_nan);
  }
  for (f.parts = 0;; ++f.parts) {
    __mmask16 any = 0;
    __m512i base = _mm512_set1_epi32(255);
    for (int j = 0; j < blocks; ++j) {
      any |= left[j];
      base = _mm512_mask_min_epi32(base, left[j], base, code[j]);
    }
    if (f.parts > 0 && any == 0) return f;
    __m512i shift[2] = {}, member[2] = {};
    for (int j = 0; j < blocks; ++j) {
      const __m512i above = _mm512_sub_epi32(code[j], base);
      const __mmask16 in = _mm512_mask_cmple_epi32_mask(left[j], above, _mm512_set1_epi32(most_shift));
      const auto bit = static_cast<unsigned>(8 * (j % 4));
      __m512i &shifts = shift[j / 4], &members = member[j / 4];
      shifts = _mm512_mask_or_epi32(shifts, in, shifts, _mm512_slli_epi32(above, bit + 4));
      members = _mm512_mask_or_epi32(members, in, members, _mm512_set1_epi32(static_cast<int>(255u << bit)));
      left[j] &= static_cast<__mmask16>(~in);
    }
    for (int word = 0; word < 2; ++word) {
      f.shift[f.parts][word] = shift[word];
      f.member[f.parts][word] = member[word];
    }
    f.scale[f.parts] = _mm512_maskz_mov_ps(any, scales_e8m0(base));
    if (f.parts == 0)
      f.scale[0] = _mm512_mask_mov_ps(f.scale[0], nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
  }
}

// Integers of 4-bit codes, or of the digits of 8-bit ones, the upper first, shifted left by bits 4 and 5 of
// the index.
struct Digits {
  __m512i values[2];
  float weight[2];  // relative to the upper
};

// What the upper digit counts.
float digit_unit(Element e) { return e == Element::int8 ? 16 * unit_of(e) : unit_of(e); }

Digits digits_table(Element e) {
  Digits d{};
  for (int digit = 0; digit < digits_of(e); ++digit) {
    alignas(64) int8_t t[64];
    for (int i = 0; i < 64; ++i) {
      const auto code = static_cast<uint32_t>(i % 16);
      const float value = digit == 1           ? static_cast<float>(code)
                          : e == Element::e2m1 ? decode_element(e, code) / unit_of(e)
                                               : decode_element(Element::int4, code) / unit_of(Element::int4);
      t[i] = static_cast<int8_t>(static_cast<int>(value) * (1 << i / 16));
    }
    d.values[digit] = _mm512_load_si512(t);
    d.weight[digit] = digit == 0 ? 1.0f : 1.0f / 16;
  }
  return d;
}

// Bits of a code that make it other than zero.
__m512i magnitude_of(Element e) { return _mm512_set1_epi8(e == Element::e2m1 ? 0x77 : -1); }

// A digit of 64 codes of 8 bits.
inline __m512i digit_of(const uint8_t* codes, int64_t count, int digit) {
  const __m512i v = _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(mask64(count), codes), evens_first());
  return digit == 0 ? high_nibbles(v) : low_nibbles(v);
}

// One chunk of 16 rows of a, at row `first` of group `index`. Returns the number of parts.
int fold_rows(const BlockGemm& g, const Plan& p, const Memory& m, const Digits& table, __m512i magnitude,
              int64_t index, int64_t first, int64_t begin, int64_t count, int64_t chunk) {
  const int64_t k = chunk * p.chunk, length = least(p.chunk, g.k - k), groups = p.held / group;
  const int blocks = static_cast<int>(length / g.a.block), digits = digits_of(g.a.element);
  alignas(64) uint32_t e[2][16] = {};
  __mmask16 nonzero[folded_blocks] = {};
  for (int64_t r = 0; r < count; ++r) {
    uint32_t scales[2] = {};
    memcpy(scales, g.a_scales + (begin + r) * g.a_scale_stride + k / g.a.block, static_cast<size_t>(blocks));
    e[0][r] = scales[0];
    e[1][r] = scales[1];
    const uint8_t* at = g.a_codes + (begin + r) * g.a_code_stride + k * digits / 2;
    uint64_t words = 0;  // a bit for four bytes
    for (int64_t i = 0; 128 * i < length * digits; ++i)
      words |= uint64_t{_mm512_test_epi32_mask(
                   _mm512_maskz_loadu_epi8(mask64(length * digits / 2 - 64 * i), at + 64 * i), magnitude)}
               << (16 * i);
    for (int j = 0; j < blocks; ++j)
      nonzero[j] |=
          static_cast<__mmask16>((words >> (4 * digits * j) & (digits == 1 ? 15 : 255) ? 1 : 0) << r);
  }
  __m512i code[folded_blocks];
  for (int j = 0; j < folded_blocks; ++j)
    code[j] =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_load_si512(e[j / 4]), static_cast<unsigned>(8 * (j % 4))),
                         _mm512_set1_epi32(255));
  const Fold f = fold_of(code, nonzero, blocks);
  const __m512 unit = _mm512_set1_ps(digit_unit(g.a.element) * digit_unit(g.b.element));
  for (int part = 0; part < f.parts; ++part) {
    alignas(64) uint32_t shift[2][16], member[2][16];
    for (int word = 0; word < 2; ++word) {
      _mm512_store_si512(shift[word], f.shift[part][word]);
      _mm512_store_si512(member[word], f.member[part][word]);
    }
    for (int digit = 0; digit < digits; ++digit) {
      const int64_t slot = part * digits + digit;
      _mm512_store_ps(m.a_scales + ((index * p.chunks + chunk) * p.parts + slot) * group + first,
                      _mm512_mul_ps(f.scale[part], _mm512_mul_ps(unit, _mm512_set1_ps(table.weight[digit]))));
      int8_t* to =
          m.a + (slot * groups + index) * p.steps * step_bytes + k / step * step_bytes + first * step;
      for (int64_t s = 0; s * step < length; ++s) {
        // Of block 2 s for the first half of the elements, of 2 s + 1 for the second.
        const __m512i which =
            _mm512_add_epi8(_mm512_set1_epi8(static_cast<char>(s % 2 * 2)),
                            _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(1), 1));
        for (int64_t r = 0; r < 16; ++r) {
          __m512i v = _mm512_setzero_si512();
          if (r < count) {
            const uint8_t* codes = g.a_codes + (begin + r) * g.a_code_stride + (k + s * step) * digits / 2;
            const int64_t left = length - s * step;
            const auto shifts = _mm512_set1_epi32(static_cast<int>(shift[s / 2][r])),
                       members = _mm512_set1_epi32(static_cast<int>(member[s / 2][r]));
            v = digits == 1 ? spread(codes, left) : digit_of(codes, left, digit);
            v = _mm512_and_si512(v, _mm512_shuffle_epi8(members, which));
            v = _mm512_permutexvar_epi8(_mm512_or_si512(v, _mm512_shuffle_epi8(shifts, which)),
                                        table.values[digit]);
          }
          _mm512_store_si512(to + s * step_bytes + r * step, v);
        }
      }
    }
  }
  return f.parts * digits;
}

void clear_part(const Plan& p, const Memory& m, int64_t index, int64_t first, int64_t chunk, int64_t length,
                int part) {
  const int64_t groups = p.held / group, k = chunk * p.chunk;
  _mm512_store_ps(m.a_scales + ((index * p.chunks + chunk) * p.parts + part) * group + first,
                  _mm512_setzero_ps());
  int8_t* to = m.a + (part * groups + index) * p.steps * step_bytes + k / step * step_bytes + first * step;
  for (int64_t s = 0; s * step < length; ++s)
    for (int64_t r = 0; r < 16; ++r)
      _mm512_store_si512(to + s * step_bytes + r * step, _mm512_setzero_si512());
}

void fold_group(const BlockGemm& g, const Plan& p, const Memory& m, int64_t index, int64_t begin,
                int64_t count, const Digits& table) {
  const __m512i magnitude = magnitude_of(g.a.element);
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    int parts[2], most = 1;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t rows = count - 16 * half;
      parts[half] = fold_rows(g, p, m, table, magnitude, index, 16 * half, begin + 16 * half,
                              rows < 0 ? 0 : least(rows, 16), chunk);
      most = parts[half] > most ? parts[half] : most;
    }
    for (int64_t half = 0; half < 2; ++half)
      for (int part = parts[half]; part < most; ++part)
        clear_part(p, m, index, 16 * half, chunk, least(p.chunk, g.k - chunk * p.chunk), part);
    m.a_parts[index * p.chunks + chunk] = most;
  }
}

// As unpack_panels().
void fold_panels(const BlockGemm& g, const Plan& p, const Memory& m, const uint8_t* const* panels,
                 int64_t begin, const Digits& table) {
  const int digits = digits_of(g.b.element);
  const __m512i magnitude = magnitude_of(g.b.element);
  const __m512i of_lane = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  for (int64_t k = begin; k < least(g.k, begin + span); k += p.chunk) {
    const int64_t length = least(p.chunk, g.k - k), c = (k - begin) / p.chunk;
    const int blocks = static_cast<int>(length / g.b.block);
    int parts[2], most = 1;
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t* from = panels[half] + k * 8 * digits;
      const uint8_t* scales = panels[half] + block_panel_codes(g.b.element, g.k) + k / g.b.block * 16;
      __m512i code[folded_blocks];
      __mmask16 nonzero[folded_blocks];
      for (int j = 0; j < blocks; ++j) {
        code[j] = bytes16(scales + 16 * j);
        __m512i any = _mm512_setzero_si512();
        for (int64_t i = 0; i < 4 * digits; ++i)
          any = _mm512_or_si512(any, _mm512_loadu_si512(from + (4 * digits * j + i) * 64));
        nonzero[j] = _mm512_test_epi32_mask(any, magnitude);
      }
      const Fold f = fold_of(code, nonzero, blocks);
      parts[half] = f.parts * digits;
      most = parts[half] > most ? parts[half] : most;
      for (int slot = 0; slot < parts[half]; ++slot) {
        const int part = slot / digits, digit = slot % digits;
        _mm512_store_ps(m.b_scales + (c * p.parts + slot) * group + 16 * half,
                        _mm512_mul_ps(f.scale[part], _mm512_set1_ps(table.weight[digit])));
        uint8_t* to = m.b + (slot * 2 + half) * span * 16 + (k - begin) * 16;
        for (int j = 0; j < blocks; ++j) {
          const __m512i pick = _mm512_add_epi8(of_lane, _mm512_set1_epi8(static_cast<char>(j % 4)));
          const __m512i shift = _mm512_shuffle_epi8(f.shift[part][j / 4], pick),
                        member = _mm512_shuffle_epi8(f.member[part][j / 4], pick);
          for (int64_t i = 8 * j; i < 8 * j + 8; ++i) {
            __m512i codes = _mm512_loadu_si512(from + (digits == 1 ? i / 2 : i) * 64);
            codes = _mm512_and_si512(codes, member);
            codes = (digits == 1 ? i % 2 == 0 : digit == 1) ? low_nibbles(codes) : high_nibbles(codes);
            _mm512_store_si512(to + 64 * i,
                               _mm512_permutexvar_epi8(_mm512_or_si512(codes, shift), table.values[digit]));
          }
        }
      }
    }
    for (int64_t half = 0; half < 2; ++half)
      for (int slot = parts[half]; slot < most; ++slot) {
        _mm512_store_ps(m.b_scales + (c * p.parts + slot) * group + 16 * half, _mm512_setzero_ps());
        memset(m.b + (slot * 2 + half) * span * 16 + (k - begin) * 16, 0, static_cast<size_t>(length * 16));
      }
    m.b_parts[c] = most;
  }
}

// Sums of a chunk that tiles have left in memory, and where they go.
struct Pending {
  const int32_t* tiles;  // [2 x 2][16][16]
  const float *a_scales, *b_scales;
  float* sums;
  bool several_parts;
};

// A part may meet one of the other operand that no block of it belongs to: then S is zero, and the product of
// their scales may be beyond fp32, which must not make it NaN. A scale that is NaN stays so.
template <bool several_parts>
inline __m512 tile_sum(const int32_t* s, __m512 a_scale, __m512 b_scale, __m512 sum) {
  __m512 scale = _mm512_mul_ps(a_scale, b_scale);
  if (several_parts) scale = _mm512_min_ps(_mm512_set1_ps(largest_float), scale);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(s)), scale, sum);
}

// Of 8 rows from `first` on.
template <bool several_parts>
inline void add_rows(const Pending& d, int first) {
  const __m512 scale0 = _mm512_load_ps(d.b_scales), scale1 = _mm512_load_ps(d.b_scales + 16);
  const int32_t* s = d.tiles + (first / 16 * 512 + first % 16 * 16);
  float* to = d.sums + first * group;
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r, s += 16, to += group) {
    const __m512 a_scale = _mm512_set1_ps(d.a_scales[first + r]);
    _mm512_store_ps(to, tile_sum<several_parts>(s, a_scale, scale0, _mm512_load_ps(to)));
    _mm512_store_ps(to + 16, tile_sum<several_parts>(s + 256, a_scale, scale1, _mm512_load_ps(to + 16)));
  }
}
inline void add_rows(const Pending& d, int first) {
  d.several_parts ? add_rows<true>(d, first) : add_rows<false>(d, first);
}

// [2 x 2] tiles from `steps` of 64 k. Between them what is pending is added, a quarter after each: the
// reorder buffer does not hold all of it beside products that are under way.
inline void multiply_tiles(const int8_t* a, const uint8_t* b, int64_t steps, const Pending& pending) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  int added = pending.tiles ? 0 : static_cast<int>(group);
  for (int64_t s = 0; s < steps; ++s, a += step_bytes, b += step * 16) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_loadd(7, b + span * 16, 64);
    _tile_loadd(5, a + 16 * step, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
    if (added < group) {
      add_rows(pending, added);
      added += 8;
    }
  }
  for (; added < group; added += 8) add_rows(pending, added);
}

inline void store_tiles(int32_t* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + 256, 64);
  _tile_stored(2, to + 512, 64);
  _tile_stored(3, to + 768, 64);
}

// Sums of one chunk are added to fp32 while the tiles multiply the next.
void tile_span(const BlockGemm& g, const Plan& p, const Memory& m, float* sums, int64_t groups,
               int64_t begin) {
  const int64_t end = least(begin + span, g.k), first = begin / p.chunk,
                chunks = ceil_div(end - begin, p.chunk);
  const int64_t a_part = p.held / group * p.steps * step_bytes, b_part = 2 * span * 16;
  Pending pending{};
  int32_t *tiles = m.tiles, *other = m.tiles + 1024;
  memory_is_read(m.a);
  for (int64_t i = 0; i < groups; ++i)
    for (int64_t c = 0, k = begin; c < chunks; ++c, k += p.chunk) {
      const int64_t chunk = i * p.chunks + first + c, steps = ceil_div(least(p.chunk, end - k), step);
      const int8_t* a = m.a + (i * p.steps + k / step) * step_bytes + k % step;
      const uint8_t* b = m.b + (k - begin) * 16;
      for (int pa = 0; pa < m.a_parts[chunk]; ++pa)
        for (int pb = 0; pb < m.b_parts[c]; ++pb) {
          multiply_tiles(a + pa * a_part, b + pb * b_part, steps, pending);
          store_tiles(tiles);
          pending = {tiles, m.a_scales + (chunk * p.parts + pa) * group,
                     m.b_scales + (c * p.parts + pb) * group, sums + i * group * group,
                     m.a_parts[chunk] + m.b_parts[c] > 2};
          int32_t* const free = other;
          other = tiles;
          tiles = free;
        }
    }
  for (int r = 0; pending.tiles && r < group; r += 8) add_rows(pending, r);
}

void release() { _tile_release(); }

#pragma GCC pop_options

// The panels of `group` columns from `column` on.
struct PanelPair {
  const uint8_t* panels[2];
  PanelPair(const BlockGemm& g, int64_t column) {
    const int64_t bytes = block_panel_bytes(g.b, g.k);
    panels[0] = g.b_panels + column / 16 * bytes;
    panels[1] = column + 16 < g.columns ? panels[0] + bytes : panels[0];
  }
};

// Writes columns [column, end), at most wide groups, and leaves zeros for the next ones. y's lines are far
// apart: those of a row are asked for some rows before they are written.
void finish_panels(const BlockGemm& g, const Plan& p, const Memory& m, int64_t row, int64_t rows,
                   int64_t column, int64_t end) {
  constexpr int64_t ahead = 6;
  const int64_t halves = 2 * ceil_div(end - column, group), size = g.y_is_f32 ? 4 : 2;
  __m512 f[2 * wide];
  __mmask16 mask[2 * wide];
  for (int64_t h = 0; h < halves; ++h) {
    f[h] = factors(g, PanelPair(g, column + h / 2 * group).panels[h % 2]);
    mask[h] = mask16(g.columns - column - 16 * h);
  }
  for (int64_t r = 0; r < rows; ++r) {
    char* at = y_at(g, row + r, column);
    if (r + ahead < rows)
      for (int64_t i = 0; i < (end - column) * size; i += 64)
        __builtin_prefetch(at + ahead * g.y_row_bytes + i, 1);
    for (int64_t h = 0; h < halves; h += 2) {
      float* sum = m.sums + (h / 2 * p.held + r) * group;
      if (!g.y_is_f32 && mask[h + 1] == 0xffff) {
        finish_two(g, at + h * 32, f + h, sum);
      } else {
        finish(g, at + h * 16 * size, mask[h], f[h], _mm512_load_ps(sum));
        if (mask[h + 1]) finish(g, at + (h + 1) * 16 * size, mask[h + 1], f[h + 1], _mm512_load_ps(sum + 16));
      }
      _mm512_store_ps(sum, _mm512_setzero_ps());
      _mm512_store_ps(sum + 16, _mm512_setzero_ps());
    }
  }
}

void multiply(const BlockGemm& g, bool with_tiles) {
  const Plan p = plan_of(g, with_tiles);
  const Memory m = memory_of(p, g.buffer);
  const ScaleTable table(g.b.scale);
  const Digits a_digits = digits_table(g.a.element), b_digits = digits_table(g.b.element);
  const __m512i a_values = a_lookup(g), b_values = b_lookup(g, p.b_offset);
  if (with_tiles) configure(least(step, p.chunk));
  memset(m.sums, 0, static_cast<size_t>(wide * p.held * group) * 4);
  for (int64_t row = 0; row < g.rows; row += p.held) {
    const int64_t rows = least(p.held, g.rows - row), groups = ceil_div(rows, group);
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t count = least(group, rows - i * group);
      p.fold ? fold_group(g, p, m, i, row + i * group, count, a_digits)
             : unpack_group(g, p, m, i, row + i * group, count, true, a_values);
    }
    for (int64_t column = 0; column < g.columns; column += wide * group) {
      const int64_t end = least(g.columns, column + wide * group);
      float* sums = m.sums;
      for (int64_t c = column; c < end; c += group, sums += p.held * group) {
        const PanelPair b(g, c);
        for (int64_t k = 0; k < g.k; k += span) {
          p.fold ? fold_panels(g, p, m, b.panels, k, b_digits)
                 : unpack_panels(g, p, m, table, b.panels, k, b_values);
          with_tiles ? tile_span(g, p, m, sums, groups, k) : dot_span(g, p, m, sums, groups, k);
        }
      }
      finish_panels(g, p, m, row, rows, column, end);
    }
  }
  if (with_tiles) release();
}

// ---- few rows

template <int rows, bool bytes>
void panel_rows(const BlockGemm& g, const Plan& p, const Memory& m, const ScaleTable& table, __m512i values,
                const uint8_t* panel, int64_t row, int64_t column) {
  const uint8_t* scales = panel + block_panel_codes(g.b.element, g.k);
  const int64_t end = (g.k + 7) / 8 * 8;
  __m512 sum[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sum[r] = _mm512_setzero_ps();
  for (int64_t c = 0; c < p.chunks; ++c) {
    __m512i s[rows], t[rows];  // with few rows two sums each, so that enough are under way
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      s[r] = _mm512_set1_epi32(m.a_sums[c * group + row + r]);
      t[r] = _mm512_setzero_si512();
    }
    for (int64_t k = c * p.chunk; k < least(end, (c + 1) * p.chunk); k += 8) {
      const int8_t* a = m.a + k / step * step_bytes + k % step + row * step;
      __m512i even, odd;
      if (bytes) {
        even = _mm512_xor_si512(_mm512_loadu_si512(panel + k * 16), values);
        odd = _mm512_xor_si512(_mm512_loadu_si512(panel + k * 16 + 64), values);
      } else {
        const __m512i codes = _mm512_loadu_si512(panel + k * 8);
        even = _mm512_shuffle_epi8(values, low_nibbles(codes));
        odd = _mm512_shuffle_epi8(values, high_nibbles(codes));
      }
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        add_dot(s[r], even, word_of(a + r * step));
        add_dot(rows < 4 ? t[r] : s[r], odd, word_of(a + r * step + 4));
      }
    }
    const __m512 scale = panel_scales(g.b, table, scales, c);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      sum[r] = rescaled(_mm512_add_epi32(s[r], t[r]), m.a_scales[c * group + row + r], scale, sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
    finish(g, y_at(g, row + r, column), mask16(g.columns - column), factors(g, panel), sum[r]);
}

template <bool bytes>
void panel_of_rows(const BlockGemm& g, const Plan& p, const Memory& m, const ScaleTable& table,
                   __m512i values, const uint8_t* panel, int64_t column) {
  for (int64_t row = 0; row < g.rows;) {
    const int64_t left = g.rows - row;
    const auto run = left >= 8   ? panel_rows<8, bytes>
                     : left >= 4 ? panel_rows<4, bytes>
                     : left >= 2 ? panel_rows<2, bytes>
                                 : panel_rows<1, bytes>;
    run(g, p, m, table, values, panel, row, column);
    row += left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
}

}  // namespace

void dot(const BlockGemm& g) { multiply(g, false); }
int64_t dot_buffer_bytes(const BlockGemm& g) { return memory_of(plan_of(g, false), nullptr).bytes; }
void tiles(const BlockGemm& g) { multiply(g, true); }
int64_t tiles_buffer_bytes(const BlockGemm& g) { return memory_of(plan_of(g, true), nullptr).bytes; }

void few_rows(const BlockGemm& g) {
  const Plan p = plan_of(g, false);
  const Memory m = memory_of(p, g.buffer);
  const ScaleTable table(g.b.scale);
  const __m512i values = b_lookup(g, p.b_offset);
  unpack_group(g, p, m, 0, 0, g.rows, false, a_lookup(g));
  for (int64_t column = 0; column < g.columns; column += block_columns) {
    const uint8_t* panel = g.b_panels + column / 16 * block_panel_bytes(g.b, g.k);
    element_bits(g.b.element) == 8 ? panel_of_rows<true>(g, p, m, table, values, panel, column)
                                   : panel_of_rows<false>(g, p, m, table, values, panel, column);
  }
}
int64_t few_rows_buffer_bytes(const BlockGemm& g) { return dot_buffer_bytes(g); }

void pack_panel(uint8_t* panel, const BlockLayout& b, int64_t k, const BlockColumn* columns, int64_t count) {
  const int bits = element_bits(b.element);
  const int64_t row_bytes = k * bits / 8, words = (k + 7) / 8 * bits / 4;
  for (int64_t w = 0; w < words; w += 16) {
    __m512i r[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      r[i] = i < count ? _mm512_maskz_loadu_epi8(mask64(row_bytes - 4 * w), columns[i].codes + 4 * w)
                       : _mm512_setzero_si512();
      if (bits == 8) r[i] = _mm512_shuffle_epi8(r[i], evens_first());
    }
    transpose16(r);
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i)
      if (w + i < words) _mm512_storeu_si512(panel + (w + i) * 64, r[i]);
  }
  uint8_t* scales = panel + block_panel_codes(b.element, k);
  memset(scales, 0, static_cast<size_t>(block_panel_scales(b, k)));
  const int64_t blocks = b.block ? k / b.block : 1, width = b.scale == ScaleType::f32 ? 4 : 1;
  float factors[16] = {};
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t i = 0; i < blocks; ++i)
      memcpy(scales + (i * 16 + c) * width, columns[c].scales + i * width, static_cast<size_t>(width));
    factors[c] = columns[c].tensor_scale;
  }
  memcpy(panel + block_panel_bytes(b, k) - 64, factors, 64);
}

}  // namespace osprey::cpu::avx512_bf16

#endif
