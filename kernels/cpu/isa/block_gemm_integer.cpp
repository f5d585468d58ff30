// The engines for integer elements: dot products (VNNI), and tiles (AMX) with block_gemm_tiles.cpp. Rows of a
// are unpacked to int8 once for some hundred of them, two panels of b to int8 for 512 k at a time, so that
// they stay in L1; sums over blocks come out of an engine in int32 and are added to fp32 sums in L2.
//
// All int8 is in one order of k: of every 8 first the even four, then the odd four, as nibbles come out
// of a word.

#include "kernels/cpu/isa/block_gemm_integer.h"

#if defined(OSPREY_ISA_avx512_bf16)

#include "kernels/cpu/isa/block_gemm_tiles.h"
#include "kernels/cpu/isa/hadamard.h"
#include "kernels/cpu/isa/transpose16.h"

namespace osprey::cpu::avx512_bf16 {

namespace {

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

// The mask of up to 16 columns, whole bytes, of which `left` exist.
inline __mmask16 kept16(const uint8_t* mask, int64_t left) {
  if (left < 16) return left > 0 ? *mask : 0;
  uint16_t bits;
  memcpy(&bits, mask, 2);
  return bits;
}

// Scales the sums of a row by f, masks them and turns them back by groups of `size`, 0: none. Vector h has
// columns 16 h from `column` on; beyond `halves` there are none. Sums of neighbouring groups
// are `apart` floats apart.
template <int size>
inline void turn_row(const BlockGemm& g, int64_t row, int64_t column, const __m512* f, int64_t halves,
                     float* sums, int64_t apart) {
  constexpr int count = size > 2 * group ? 2 * most_wide : 4, vectors = size / lanes;
  const uint8_t* const mask = g.mask ? g.mask + row * g.mask_stride + column / 8 : nullptr;
  Vec x[count];
#pragma GCC unroll 8
  for (int h = 0; h < count; ++h) {
    if (h >= halves) {
      x[h] = Vec{};
      continue;
    }
    const __mmask16 kept = mask ? kept16(mask + 2 * h, g.columns - column - 16 * h) : 0xffff;
    x[h] = (Vec)_mm512_maskz_mul_ps(kept, f[h], _mm512_load_ps(sums + h / 2 * apart + h % 2 * 16));
  }
  if constexpr (size > 0) {
#pragma GCC unroll 4
    for (int at = 0; at < count; at += vectors) hadamard<size>(x + at);
#pragma GCC unroll 8
    for (int h = 0; h < count; ++h)
      x[h] = (Vec)((IVec)(x[h] * splat(g.turn_factor)) ^
                   load(reinterpret_cast<const int32_t*>(g.signs) + h % vectors * lanes));
  }
#pragma GCC unroll 8
  for (int h = 0; h < count; ++h)
    if (h < halves) store(sums + h / 2 * apart + h % 2 * 16, x[h]);
}
using TurnRow = void (*)(const BlockGemm& g, int64_t row, int64_t column, const __m512* f, int64_t halves,
                         float* sums, int64_t apart);
inline TurnRow turn_row_of(int size) {
  switch (size) {
    case 0:
      return turn_row<0>;
    case 16:
      return turn_row<16>;
    case 32:
      return turn_row<32>;
    case 64:
      return turn_row<64>;
    default:
      return turn_row<128>;
  }
}

}  // namespace

void finish_panels(const BlockGemm& g, float* sums, int64_t held, int64_t row, int64_t rows, int64_t column,
                   int64_t end) {
  constexpr int64_t ahead = 6;
  const int64_t halves = 2 * ceil_div(end - column, group), size = g.y_is_f32 ? 4 : 2;
  const TurnRow turn = g.turn_size || g.mask ? turn_row_of(g.turn_size) : nullptr;
  __m512 f[2 * most_wide], turned[2 * most_wide];
  __mmask16 mask[2 * most_wide];
  for (int64_t h = 0; h < halves; ++h) {
    const __m512 scale = factors(g, PanelPair(g, column + h / 2 * group).panels[h % 2]);
    turned[h] = scale;
    f[h] = turn ? _mm512_set1_ps(1) : scale;
    mask[h] = mask16(g.columns - column - 16 * h);
  }
  for (int64_t r = 0; r < rows; ++r) {
    char* at = y_at(g, row + r, column);
    if (r + ahead < rows)
      for (int64_t i = 0; i < (end - column) * size; i += 64)
        __builtin_prefetch(at + ahead * g.y_row_bytes + i, 1);
    if (turn) turn(g, row + r, column, turned, halves, sums + r * group, held * group);
    for (int64_t h = 0; h < halves; h += 2) {
      float* sum = sums + (h / 2 * held + r) * group;
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

namespace {

void multiply(const BlockGemm& g, bool with_tiles) {
  const Plan p = plan_of(g, with_tiles);
  const Memory m = memory_of(p, g.buffer);
  const ScaleTable table(g.b.scale);
  const __m512i a_values = p.fold ? shifted_values(g.a.element) : a_lookup(g),
                b_values = p.fold ? shifted_values(g.b.element) : b_lookup(g, p.b_offset);
  if (with_tiles) configure(least(step, p.chunk));
  memset(m.sums, 0, static_cast<size_t>(p.wide * p.held * group) * 4);
  for (int64_t row = 0; row < g.rows; row += p.held) {
    const int64_t rows = least(p.held, g.rows - row), groups = ceil_div(rows, group);
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t count = least(group, rows - i * group);
      p.fold ? fold_group(g, p, m, i, row + i * group, count, a_values)
             : unpack_group(g, p, m, i, row + i * group, count, true, a_values);
    }
    for (int64_t column = 0; column < g.columns; column += p.wide * group) {
      const int64_t end = least(g.columns, column + p.wide * group);
      float* sums = m.sums;
      for (int64_t c = column; c < end; c += group, sums += p.held * group) {
        const PanelPair b(g, c);
        for (int64_t k = 0; k < g.k; k += span) {
          p.fold ? fold_panels(g, p, m, b.panels, k, b_values)
                 : unpack_panels(g, p, m, table, b.panels, k, b_values);
          with_tiles ? tile_span(g, p, m, sums, groups, k) : dot_span(g, p, m, sums, groups, k);
        }
      }
      finish_panels(g, m.sums, p.held, row, rows, column, end);
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

static __m512i codes6(const uint8_t* codes, int64_t count) {
  alignas(64) uint8_t bytes[64];
  spread_codes6(bytes, codes, count);
  return _mm512_load_si512(bytes);
}

void pack_panel(uint8_t* panel, const BlockLayout& b, int64_t k, const BlockColumn* columns, int64_t count) {
  const bool six = element_bits(b.element) == 6;
  const int bits = six ? 8 : element_bits(b.element);
  const int64_t row_bytes = k * bits / 8, words = (k + 7) / 8 * bits / 4;
  for (int64_t w = 0; w < words; w += 16) {
    __m512i r[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i) {
      r[i] = i >= count ? _mm512_setzero_si512()
             : six      ? codes6(columns[i].codes + 3 * w, row_bytes - 4 * w)
                        : _mm512_maskz_loadu_epi8(mask64(row_bytes - 4 * w), columns[i].codes + 4 * w);
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
