// Tiles (AMX) of int8, and what of a and b goes into them: where both have powers of two for scales, eight
// blocks against one scale, see kernels/cpu/isa/block_gemm.h.

#if defined(OSPREY_ISA_avx512_bf16)

#include "kernels/cpu/isa/block_gemm_tiles.h"
#include "kernels/cpu/isa/tile_config.h"

namespace osprey::cpu::avx512_bf16 {

#pragma GCC push_options
#pragma GCC target("avx512vbmi,amx-tile,amx-int8")

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

namespace {

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

}  // namespace

__m512i shifted_values(Element e) {
  alignas(64) int8_t t[64];
  for (int i = 0; i < 64; ++i) {
    const float value = decode_element(e, static_cast<uint32_t>(i % 16)) / unit_of(e);
    t[i] = static_cast<int8_t>(static_cast<int>(value) * (1 << i / 16));
  }
  return _mm512_load_si512(t);
}

namespace {

// Bits of a code that make it other than zero.
__m512i magnitude_of(Element e) { return _mm512_set1_epi8(e == Element::e2m1 ? 0x77 : -1); }

// One chunk of 16 rows of a, at row `first` of group `index`. Returns the number of parts.
int fold_rows(const BlockGemm& g, const Plan& p, const Memory& m, __m512i values, __m512i magnitude,
              int64_t index, int64_t first, int64_t begin, int64_t count, int64_t chunk) {
  const int64_t k = chunk * p.chunk, length = least(p.chunk, g.k - k), groups = p.held / group;
  const int blocks = static_cast<int>(length / g.a.block);
  alignas(64) uint32_t e[2][16] = {};
  __mmask16 nonzero[folded_blocks] = {};
  for (int64_t r = 0; r < count; ++r) {
    uint32_t scales[2] = {};
    memcpy(scales, g.a_scales + (begin + r) * g.a_scale_stride + k / g.a.block, static_cast<size_t>(blocks));
    e[0][r] = scales[0];
    e[1][r] = scales[1];
    const uint8_t* at = g.a_codes + (begin + r) * g.a_code_stride + k / 2;
    uint64_t words = 0;  // a bit for four bytes
    for (int64_t i = 0; 128 * i < length; ++i)
      words |= uint64_t{_mm512_test_epi32_mask(
                   _mm512_maskz_loadu_epi8(mask64(length / 2 - 64 * i), at + 64 * i), magnitude)}
               << (16 * i);
    for (int j = 0; j < blocks; ++j)
      nonzero[j] |= static_cast<__mmask16>((words >> (4 * j) & 15 ? 1 : 0) << r);
  }
  __m512i code[folded_blocks];
  for (int j = 0; j < folded_blocks; ++j)
    code[j] =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_load_si512(e[j / 4]), static_cast<unsigned>(8 * (j % 4))),
                         _mm512_set1_epi32(255));
  const Fold f = fold_of(code, nonzero, blocks);
  const __m512 unit = _mm512_set1_ps(scaled_units(1, g.a.element, g.b.element));
  for (int part = 0; part < f.parts; ++part) {
    alignas(64) uint32_t shift[2][16], member[2][16];
    for (int word = 0; word < 2; ++word) {
      _mm512_store_si512(shift[word], f.shift[part][word]);
      _mm512_store_si512(member[word], f.member[part][word]);
    }
    _mm512_store_ps(m.a_scales + ((index * p.chunks + chunk) * p.parts + part) * group + first,
                    _mm512_mul_ps(f.scale[part], unit));
    int8_t* to = m.a + (part * groups + index) * p.steps * step_bytes + k / step * step_bytes + first * step;
    for (int64_t s = 0; s * step < length; ++s) {
      // Of block 2 s for the first half of the elements, of 2 s + 1 for the second.
      const __m512i which =
          _mm512_add_epi8(_mm512_set1_epi8(static_cast<char>(s % 2 * 2)),
                          _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi8(1), 1));
      for (int64_t r = 0; r < 16; ++r) {
        __m512i v = _mm512_setzero_si512();
        if (r < count) {
          const uint8_t* codes = g.a_codes + (begin + r) * g.a_code_stride + (k + s * step) / 2;
          const auto shifts = _mm512_set1_epi32(static_cast<int>(shift[s / 2][r])),
                     members = _mm512_set1_epi32(static_cast<int>(member[s / 2][r]));
          v = _mm512_and_si512(spread(codes, length - s * step), _mm512_shuffle_epi8(members, which));
          v = _mm512_permutexvar_epi8(_mm512_or_si512(v, _mm512_shuffle_epi8(shifts, which)), values);
        }
        _mm512_store_si512(to + s * step_bytes + r * step, v);
      }
    }
  }
  return f.parts;
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

}  // namespace

void fold_group(const BlockGemm& g, const Plan& p, const Memory& m, int64_t index, int64_t begin,
                int64_t count, __m512i values) {
  const __m512i magnitude = magnitude_of(g.a.element);
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
    int parts[2], most = 1;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t rows = count - 16 * half;
      parts[half] = fold_rows(g, p, m, values, magnitude, index, 16 * half, begin + 16 * half,
                              rows < 0 ? 0 : least(rows, 16), chunk);
      most = parts[half] > most ? parts[half] : most;
    }
    for (int64_t half = 0; half < 2; ++half)
      for (int part = parts[half]; part < most; ++part)
        clear_part(p, m, index, 16 * half, chunk, least(p.chunk, g.k - chunk * p.chunk), part);
    m.a_parts[index * p.chunks + chunk] = most;
  }
}

void fold_panels(const BlockGemm& g, const Plan& p, const Memory& m, const uint8_t* const* panels,
                 int64_t begin, __m512i values) {
  const __m512i magnitude = magnitude_of(g.b.element);
  const __m512i of_lane = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  for (int64_t k = begin; k < least(g.k, begin + span); k += p.chunk) {
    const int64_t length = least(p.chunk, g.k - k), c = (k - begin) / p.chunk;
    const int blocks = static_cast<int>(length / g.b.block);
    int parts[2], most = 1;
    for (int64_t half = 0; half < 2; ++half) {
      const uint8_t* from = panels[half] + k * 8;
      const uint8_t* scales = panels[half] + block_panel_codes(g.b.element, g.k) + k / g.b.block * 16;
      __m512i code[folded_blocks];
      __mmask16 nonzero[folded_blocks];
      for (int j = 0; j < blocks; ++j) {
        code[j] = bytes16(scales + 16 * j);
        __m512i any = _mm512_setzero_si512();
        for (int64_t i = 0; i < 4; ++i)
          any = _mm512_or_si512(any, _mm512_loadu_si512(from + (4 * j + i) * 64));
        nonzero[j] = _mm512_test_epi32_mask(any, magnitude);
      }
      const Fold f = fold_of(code, nonzero, blocks);
      parts[half] = f.parts;
      most = parts[half] > most ? parts[half] : most;
      for (int part = 0; part < parts[half]; ++part) {
        _mm512_store_ps(m.b_scales + (c * p.parts + part) * group + 16 * half, f.scale[part]);
        uint8_t* to = m.b + (part * 2 + half) * span * 16 + (k - begin) * 16;
        for (int j = 0; j < blocks; ++j) {
          const __m512i pick = _mm512_add_epi8(of_lane, _mm512_set1_epi8(static_cast<char>(j % 4)));
          const __m512i shift = _mm512_shuffle_epi8(f.shift[part][j / 4], pick),
                        member = _mm512_shuffle_epi8(f.member[part][j / 4], pick);
          for (int64_t i = 8 * j; i < 8 * j + 8; ++i) {
            __m512i codes = _mm512_and_si512(_mm512_loadu_si512(from + i / 2 * 64), member);
            codes = i % 2 == 0 ? low_nibbles(codes) : high_nibbles(codes);
            _mm512_store_si512(to + 64 * i, _mm512_permutexvar_epi8(_mm512_or_si512(codes, shift), values));
          }
        }
      }
    }
    for (int64_t half = 0; half < 2; ++half)
      for (int part = parts[half]; part < most; ++part) {
        _mm512_store_ps(m.b_scales + (c * p.parts + part) * group + 16 * half, _mm512_setzero_ps());
        memset(m.b + (part * 2 + half) * span * 16 + (k - begin) * 16, 0, static_cast<size_t>(length * 16));
      }
    m.b_parts[c] = most;
  }
}

namespace {

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

}  // namespace

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

}  // namespace osprey::cpu::avx512_bf16

#endif
