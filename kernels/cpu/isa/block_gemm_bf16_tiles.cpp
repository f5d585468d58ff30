// Tiles (AMX) of bf16, for elements and powers of two whose products are exact in it. Rows of a become bf16
// in pieces that stay in L2, two panels of b once for all of these rows; where k is longer than a piece,
// sums wait in memory.
//
// All bf16 is in one order of k: of every 8 the pairs (0, 4), (2, 6), (1, 5), (3, 7), as bytes lie in panels.

#include "kernels/cpu/isa/block_gemm_integer.h"

#if defined(OSPREY_ISA_avx512_bf16)

#include "kernels/cpu/isa/block_gemm_plan.h"
#include "kernels/cpu/isa/tile_config.h"

namespace osprey::cpu::avx512_bf16 {

#pragma GCC push_options
#pragma GCC target("avx512vbmi,amx-tile,amx-bf16")

namespace {

constexpr int64_t depth = 32;                       // k of a tile, and elements of a block
constexpr int64_t depth_bytes = group * 2 * depth;  // of a group of rows, or of two panels
constexpr int64_t piece = 1024;                     // k that are unpacked at a time
constexpr int64_t most_held = 512;                  // rows of a
constexpr int64_t most_columns = 1024;              // whose sums wait together

struct Work {
  int64_t chunks;   // of `piece` in k
  int64_t held;     // rows of a, whole groups
  int64_t columns;  // whose sums wait together, whole groups
};

Work work_of(const BlockGemm& g) {
  const int64_t chunks = ceil_div(g.k, piece);
  return {
      .chunks = chunks,
      .held = least(ceil_div(g.rows, group) * group, most_held),
      .columns = least(ceil_div(g.columns, group) * group, chunks == 1 ? wide_of(g) * group : most_columns)};
}

struct Buffers {
  uint8_t* a;   // [group][piece / 32][32 rows][32] bf16
  uint8_t* b;   // [piece / 32][2 panels][16 pairs of k][16 columns][2] bf16
  float* sums;  // [columns / 32][held][32]
  int64_t bytes;
};

Buffers buffers_of(const Work& w, void* buffer) {
  const int64_t a_bytes = w.held * piece * 2, b_bytes = group * piece * 2;
  auto* const at = static_cast<uint8_t*>(buffer);
  return {.a = at,
          .b = at + a_bytes,
          .sums = reinterpret_cast<float*>(at + a_bytes + b_bytes),
          .bytes = a_bytes + b_bytes + w.held * w.columns * 4};
}

// ---- codes to bf16

enum class Codes { short_ones, floats, integers };  // of at most 6 bits; of 8

Codes kind_of(Element e) {
  return element_bits(e) < 8 ? Codes::short_ones : e == Element::int8 ? Codes::integers : Codes::floats;
}

// The two bytes of the bf16 numbers that codes stand for: by the code where it has at most 6 bits, else by
// its magnitude, which is below 128.
struct Table {
  __m512i low[2], high[2];
};

Table table_of(Element e) {
  alignas(64) uint8_t low[128], high[128];
  const int bits = element_bits(e);
  for (uint32_t i = 0; i < 128; ++i) {
    const uint16_t number = to_bf16(decode_element(e, bits < 8 ? i & ((1u << bits) - 1) : i)).bits;
    low[i] = static_cast<uint8_t>(number);
    high[i] = static_cast<uint8_t>(number >> 8);
  }
  Table t;
  for (int i = 0; i < 2; ++i) {
    t.low[i] = _mm512_load_si512(low + 64 * i);
    t.high[i] = _mm512_load_si512(high + 64 * i);
  }
  return t;
}

// x | (y & mask).
inline __m512i or_masked(__m512i x, __m512i y, __m512i mask) {
  return _mm512_ternarylogic_epi64(x, y, mask, 0xf8);
}

struct Numbers {
  __m512i even, odd;  // of bytes 0, 2, 4, ... and of the others
};

template <Codes kind>
inline Numbers numbers_of(const Table& t, __m512i codes) {
  __m512i low, high;
  if constexpr (kind == Codes::short_ones) {
    low = _mm512_permutexvar_epi8(codes, t.low[0]);
    high = _mm512_permutexvar_epi8(codes, t.high[0]);
  } else {
    const __m512i sign = _mm512_set1_epi8(-128);
    const __m512i magnitude = kind == Codes::integers ? _mm512_abs_epi8(codes) : codes;
    low = _mm512_permutex2var_epi8(t.low[0], magnitude, t.low[1]);
    high = or_masked(_mm512_permutex2var_epi8(t.high[0], magnitude, t.high[1]), codes, sign);
    if constexpr (kind == Codes::integers)  // -128 has no magnitude in 7 bits: it is -2
      high = _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(codes, sign), _mm512_set1_epi8('\xc0'));
  }
  return {or_masked(_mm512_slli_epi16(high, 8), low, _mm512_set1_epi16(0xff)),
          or_masked(_mm512_srli_epi16(low, 8), high, _mm512_set1_epi16(static_cast<int16_t>(0xff00)))};
}

// Numbers times powers of two, `scale` being their codes where exponents are: below 2^-126 denormal or zero,
// which tiles take for zero alike, beyond fp32 Inf. NaN and Inf stay what they are.
template <Codes kind>
inline __m512i scaled(__m512i number, __m512i scale) {
  const __m512i infinity = _mm512_set1_epi16(0x7f80),
                magnitude = _mm512_and_si512(number, _mm512_set1_epi16(0x7fff));
  const __mmask32 some = _mm512_test_epi16_mask(magnitude, magnitude);
  __m512i v = _mm512_maskz_subs_epu16(some, _mm512_add_epi16(magnitude, scale), _mm512_set1_epi16(127 << 7));
  v = _mm512_min_epu16(v, infinity);
  if constexpr (kind == Codes::floats)
    v = _mm512_mask_mov_epi16(v, _mm512_cmpge_epu16_mask(magnitude, infinity), magnitude);
  return or_masked(v, number, _mm512_set1_epi16(static_cast<int16_t>(0x8000)));
}

inline __m512i nans() { return _mm512_set1_epi16(0x7fc0); }

// 64 codes of 6 bits, as bytes.
inline __m512i spread6(const uint8_t* codes, int64_t count) {
  alignas(64) uint8_t eights[64];  // 6 bytes for every 8 codes
  for (int i = 0; i < 64; ++i) eights[i] = static_cast<uint8_t>(i / 8 * 6 + i % 8 % 6);
  const __m512i packed = _mm512_maskz_loadu_epi8(mask64(count / 4 * 3), codes),
                each = _mm512_permutexvar_epi8(_mm512_load_si512(eights), packed);
  const __m512i first_bits = _mm512_set1_epi64(0x2a241e18120c0600);
  return _mm512_and_si512(_mm512_multishift_epi64_epi8(first_bits, each), _mm512_set1_epi8(63));
}

// Which codes of 64 of a row go to which bytes, so that even bytes are the first 32 in the order of k above.
__m512i order_of(int bits) {
  constexpr int64_t of_eight[8] = {0, 4, 2, 6, 1, 5, 3, 7};
  alignas(64) uint8_t from[64];
  for (int64_t i = 0; i < 64; ++i) {
    const int64_t k = i % 2 * 32 + i / 16 * 8 + of_eight[i / 2 % 8];
    // spread() leaves of every 8 first the even codes.
    from[i] = static_cast<uint8_t>(bits == 4 ? k / 8 * 8 + k % 2 * 4 + k % 8 / 2 : k);
  }
  return _mm512_load_si512(from);
}

inline __m512i codes_of(int bits, const uint8_t* row, int64_t k, int64_t count) {
  if (bits == 4) return spread(row + k / 2, count);
  if (bits == 6) return spread6(row + k / 4 * 3, count);
  return _mm512_maskz_loadu_epi8(mask64(count), row + k);
}

inline void store_block(uint8_t* to, __m512i number, uint8_t scale, auto scale_numbers) {
  const __m512i v = scale_numbers(number, _mm512_set1_epi16(static_cast<int16_t>(scale << 7)));
  _mm512_store_si512(to, scale == e8m0_nan ? nans() : v);
}

// k [begin, begin + length) of rows [first, first + count), one group; rows that do not exist are zero.
template <Codes kind>
void unpack_rows(const BlockGemm& g, const Table& table, uint8_t* to, int64_t first, int64_t count,
                 int64_t begin, int64_t length) {
  const int bits = element_bits(g.a.element);
  const __m512i order = order_of(bits);
  for (int64_t r = 0; r < count; ++r, to += 2 * depth) {
    const uint8_t* codes = g.a_codes + (first + r) * g.a_code_stride;
    const uint8_t* scales = g.a_scales + (first + r) * g.a_scale_stride + begin / depth;
    for (int64_t k = 0; k < length; k += 2 * depth) {
      const Numbers n = numbers_of<kind>(
          table, _mm512_permutexvar_epi8(order, codes_of(bits, codes, begin + k, length - k)));
      const int64_t block = k / depth;
      store_block(to + block * depth_bytes, n.even, scales[block], scaled<kind>);
      if (k + depth < length)
        store_block(to + (block + 1) * depth_bytes, n.odd, scales[block + 1], scaled<kind>);
    }
  }
  for (int64_t r = count; r < group; ++r, to += 2 * depth)
    for (int64_t block = 0; block < length / depth; ++block)
      _mm512_store_si512(to + block * depth_bytes, _mm512_setzero_si512());
}

// k [begin, begin + length) of one panel.
template <Codes kind>
void unpack_panel(const BlockGemm& g, const Table& table, uint8_t* to, const uint8_t* panel, int64_t begin,
                  int64_t length) {
  const bool nibbles = element_bits(g.b.element) == 4;
  const uint8_t* codes = panel + begin * (nibbles ? 8 : 16);
  const uint8_t* scales = panel + block_panel_codes(g.b.element, g.k) + begin / depth * 16;
  for (int64_t block = 0; block < length / depth; ++block, to += depth_bytes, scales += 16) {
    const __m512i code = bytes16(scales),
                  scale = _mm512_or_si512(_mm512_slli_epi32(code, 7), _mm512_slli_epi32(code, 23));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(e8m0_nan));
    for (int64_t i = 0; i < 8; ++i) {  // of four k of 16 columns
      __m512i four;
      if (nibbles) {
        four = _mm512_loadu_si512(codes);
        four = i % 2 == 0 ? low_nibbles(four) : high_nibbles(four);
        codes += i % 2 * 64;
      } else {
        four = _mm512_loadu_si512(codes);
        codes += 64;
      }
      const Numbers n = numbers_of<kind>(table, four);
      _mm512_store_si512(to + 128 * i, scaled<kind>(n.even, scale));
      _mm512_store_si512(to + 128 * i + 64, scaled<kind>(n.odd, scale));
    }
    if (nan)
      for (int64_t i = 0; i < 16; ++i) _mm512_mask_store_epi32(to + 64 * i, nan, nans());
  }
}

using UnpackRows = void (*)(const BlockGemm&, const Table&, uint8_t*, int64_t, int64_t, int64_t, int64_t);
using UnpackPanel = void (*)(const BlockGemm&, const Table&, uint8_t*, const uint8_t*, int64_t, int64_t);

UnpackRows rows_unpacker(Element e) {
  const Codes kind = kind_of(e);
  return kind == Codes::short_ones ? unpack_rows<Codes::short_ones>
         : kind == Codes::floats   ? unpack_rows<Codes::floats>
                                   : unpack_rows<Codes::integers>;
}
UnpackPanel panel_unpacker(Element e) {
  const Codes kind = kind_of(e);
  return kind == Codes::short_ones ? unpack_panel<Codes::short_ones>
         : kind == Codes::floats   ? unpack_panel<Codes::floats>
                                   : unpack_panel<Codes::integers>;
}

// ---- tiles

// Tiles 0-3 are sums, 4 and 5 rows of a, 6 and 7 pairs of k of b: all of 16 rows of 64 bytes.
void configure_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  memory_is_read(&config);
  _tile_loadconfig(&config);
}

// 32 (or 16) rows of a times two panels of b over `blocks` of 32 k; sums [32][32] begin at zero or go on.
template <bool all_rows>
void multiply_group(float* sums, const uint8_t* a, const uint8_t* b, int64_t blocks, bool go_on) {
  constexpr int64_t row = group * 4;
  float* const below = sums + 16 * group;
  if (go_on) {
    _tile_loadd(0, sums, row);
    _tile_loadd(1, sums + 16, row);
    if (all_rows) _tile_loadd(2, below, row);
    if (all_rows) _tile_loadd(3, below + 16, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < blocks; ++i, a += depth_bytes, b += depth_bytes) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_loadd(7, b + depth_bytes / 2, 64);
    if (all_rows) _tile_loadd(5, a + depth_bytes / 2, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (all_rows) _tile_dpbf16ps(2, 5, 6);
    if (all_rows) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, row);
  _tile_stored(1, sums + 16, row);
  if (all_rows) _tile_stored(2, below, row);
  if (all_rows) _tile_stored(3, below + 16, row);
}

}  // namespace

void bf16_tiles(const BlockGemm& g) {
  const Work w = work_of(g);
  const int64_t wide = wide_of(g);
  const Buffers m = buffers_of(w, g.buffer);
  const Table a_table = table_of(g.a.element), b_table = table_of(g.b.element);
  const UnpackRows unpack_a = rows_unpacker(g.a.element);
  const UnpackPanel unpack_b = panel_unpacker(g.b.element);
  configure_tiles();
  for (int64_t row = 0; row < g.rows; row += w.held) {
    const int64_t rows = least(w.held, g.rows - row), groups = ceil_div(rows, group);
    for (int64_t column = 0; column < g.columns; column += w.columns) {
      const int64_t end = least(g.columns, column + w.columns);
      for (int64_t k = 0; k < g.k; k += piece) {
        const int64_t length = least(piece, g.k - k), blocks = length / depth;
        if (w.chunks > 1 || column == 0)
          for (int64_t i = 0; i < groups; ++i)
            unpack_a(g, a_table, m.a + i * group * piece * 2, row + i * group, least(group, rows - i * group),
                     k, length);
        float* sums = m.sums;
        for (int64_t c = column; c < end; c += group, sums += w.held * group) {
          const PanelPair b(g, c);
          for (int64_t half = 0; half < 2; ++half)
            unpack_b(g, b_table, m.b + half * depth_bytes / 2, b.panels[half], k, length);
          memory_is_read(m.b);
          for (int64_t i = 0; i < groups; ++i)
            (rows - i * group > 16 ? multiply_group<true>
                                   : multiply_group<false>)(sums + i * group * group,
                                                            m.a + i * group * piece * 2, m.b, blocks, k > 0);
        }
      }
      memory_is_read(m.sums);
      float* sums = m.sums;
      for (int64_t c = column; c < end; c += wide * group, sums += wide * w.held * group)
        finish_panels(g, sums, w.held, row, rows, c, least(end, c + wide * group));
    }
  }
  _tile_release();
}

int64_t bf16_tiles_buffer_bytes(const BlockGemm& g) { return buffers_of(work_of(g), nullptr).bytes; }

void spread_codes6(uint8_t* to, const uint8_t* codes, int64_t count) {
  _mm512_storeu_si512(to, spread6(codes, count));
}

#pragma GCC pop_options

}  // namespace osprey::cpu::avx512_bf16

#endif
