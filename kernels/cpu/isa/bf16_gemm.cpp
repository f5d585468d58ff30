#include "kernels/cpu/isa/bf16_gemm.h"

#if defined(OSPREY_ISA_avx512_bf16)

#include "kernels/cpu/isa/transpose16.h"

namespace osprey::cpu::avx512_bf16 {

namespace {

constexpr int64_t block_pairs = 128;  // 32 KiB of a panel stay in L1
constexpr int64_t chunk_k = 2048;     // longer sums go through memory, so that A's rows stay in L2

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of A that are held in L2 while all panels pass by.
int64_t rows_in_cache(int64_t k) {
  const int64_t rows = 270000 / (k > 0 ? k : 1);
  return (rows > 384 ? 384 : rows < 48 ? 48 : rows) / slab_rows * slab_rows;
}

int64_t chunks_of(int64_t k) { return ceil_div(k, chunk_k); }

int64_t buffer_floats(int64_t k, int64_t columns) {
  const int64_t panels = chunks_of(k) > 1 ? ceil_div(columns, panel_columns) : 1;
  return rows_in_cache(ceil_div(k, chunks_of(k))) * panel_columns * panels;
}

// Where a finished tile goes.
struct Out {
  char* c;
  int64_t c_row_bytes;
  const char* addend;
  int64_t addend_row_bytes;
  int c_is_f32;
  float alpha, beta;
  __mmask16 mask[4];
};

inline __m512 widen(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

template <int MR>
inline __attribute__((always_inline)) void finish(const __m512 (&acc)[MR][4], const Out& out) {
  const __m512 alpha = _mm512_set1_ps(out.alpha), beta = _mm512_set1_ps(out.beta);
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512 v = _mm512_mul_ps(acc[i][j], alpha);
      if (out.c_is_f32) {
        if (out.addend)
          v = _mm512_fmadd_ps(
              beta, _mm512_maskz_loadu_ps(out.mask[j], out.addend + i * out.addend_row_bytes + j * 64), v);
        _mm512_mask_storeu_ps(out.c + i * out.c_row_bytes + j * 64, out.mask[j], v);
      } else {
        if (out.addend)
          v = _mm512_fmadd_ps(
              beta,
              widen(_mm256_maskz_loadu_epi16(out.mask[j], out.addend + i * out.addend_row_bytes + j * 32)),
              v);
        _mm256_mask_storeu_epi16(out.c + i * out.c_row_bytes + j * 32, out.mask[j],
                                 (__m256i)_mm512_cvtneps_pbh(v));
      }
    }
}

// MR x 64 results over `pairs` pairs of k. Starts from zero or from `buffer`, ends in `buffer` or
// in `out`.
template <int MR, bool slab>
void tile(const char* a, int64_t a_row_bytes, const char* b, int64_t pairs, float* buffer, int first,
          const Out* out) {
  __m512 acc[MR][4];
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      acc[i][j] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(buffer + i * 64 + j * 16);
  for (int64_t p = 0; p < pairs; ++p, b += 256) {
    if constexpr (slab)
      __builtin_prefetch(a + a_row_bytes + p * 24);
    else if ((p & 15) == 0) {
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i) __builtin_prefetch(a + (6 + i) * a_row_bytes + p * 4);
    }
    __m512bh column[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) column[j] = (__m512bh)_mm512_loadu_ps(b + j * 64);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      int32_t pair;
      memcpy(&pair, slab ? a + p * (slab_rows * 4) + i * 4 : a + i * a_row_bytes + p * 4, 4);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], row, column[j]);
    }
  }
  if (out) return finish<MR>(acc, *out);
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_storeu_ps(buffer + i * 64 + j * 16, acc[i][j]);
}

using Tile = void (*)(const char*, int64_t, const char*, int64_t, float*, int, const Out*);
constexpr Tile row_tiles[] = {nullptr,        tile<1, false>, tile<2, false>, tile<3, false>,
                              tile<4, false>, tile<5, false>, tile<6, false>};
constexpr Tile slab_tiles[] = {nullptr,       tile<1, true>, tile<2, true>, tile<3, true>,
                               tile<4, true>, tile<5, true>, tile<6, true>};

// Rows [row, row + rows) of one panel over pairs [from, to).
void panel_rows(const Bf16Gemm& g, int64_t panel, int64_t row, int64_t rows, int64_t from, int64_t to,
                float* buffer) {
  const int64_t pairs = (g.k + 1) / 2, blocks = ceil_div(to - from, block_pairs),
                size = ceil_div(to - from, blocks);
  const char* b = static_cast<const char*>(g.b) + panel * panel_bytes(g.k);
  const int64_t width = g.c_is_f32 ? 4 : 2, left = g.columns - panel * panel_columns;
  Out out;
  out.c_row_bytes = g.c_row_bytes;
  out.addend_row_bytes = g.addend_row_bytes;
  out.c_is_f32 = g.c_is_f32;
  out.alpha = g.alpha;
  out.beta = g.beta;
  for (int j = 0; j < 4; ++j) {
    const int64_t n = left - 16 * j;
    out.mask[j] = static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
  }
  for (int64_t p = from; p < to; p += size) {
    const int64_t count = least(size, to - p);
    for (int64_t r = 0; r < rows; r += slab_rows) {
      const int64_t mr = least(slab_rows, rows - r);
      const char* a = static_cast<const char*>(g.a);
      a += g.a_row_bytes ? (row + r) * g.a_row_bytes + p * 4
                         : (row + r) / slab_rows * slab_bytes(g.k) + p * slab_rows * 4;
      const bool last = p + count == pairs;
      if (last) {
        out.c = static_cast<char*>(g.c) + (row + r) * g.c_row_bytes + panel * panel_columns * width;
        out.addend = g.addend ? static_cast<const char*>(g.addend) + (row + r) * g.addend_row_bytes +
                                    panel * panel_columns * width
                              : nullptr;
      }
      (g.a_row_bytes ? row_tiles : slab_tiles)[mr](a, g.a_row_bytes ? g.a_row_bytes : slab_bytes(g.k),
                                                   b + p * 256, count, buffer + r * panel_columns, p == 0,
                                                   last ? &out : nullptr);
    }
  }
}

void gemm(const Bf16Gemm& g) {
  const int64_t pairs = (g.k + 1) / 2, chunks = chunks_of(g.k), chunk = ceil_div(pairs, chunks);
  const int64_t held = rows_in_cache(ceil_div(g.k, chunks)), panels = ceil_div(g.columns, panel_columns);
  for (int64_t row = 0; row < g.rows; row += held)
    for (int64_t from = 0; from < pairs; from += chunk)
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t end = g.upper ? least(g.rows, (panel + 1) * panel_columns - g.first_row) : g.rows;
        panel_rows(g, panel, row, least(held, end - row), from, least(pairs, from + chunk),
                   g.buffer + (chunks > 1 ? panel * held * panel_columns : 0));
      }
}

// 32 columns of two rows, interleaved.
inline void interleave(char* to, __m512i even, __m512i odd) {
  const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi64(low, second, high));
}

inline __mmask32 mask32(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0u : (1u << n) - 1u; }

void pack_panels(void* to, int64_t stride_bytes, const bf16* from, int64_t row_stride, int64_t k, int64_t n,
                 int64_t first, int64_t last) {
  const int64_t pairs = (k + 1) / 2;
  for (int64_t p = 0; p < pairs; ++p)
    for (int64_t panel = first; panel < last; ++panel) {
      const bf16* even = from + 2 * p * row_stride + panel * panel_columns;
      char* block = static_cast<char*>(to) + panel * stride_bytes + p * 256;
      for (int64_t ahead = 2 * p + 16; ahead < 2 * p + 18; ++ahead)
        if (ahead < k)
          for (int half = 0; half < 2; ++half)
            __builtin_prefetch(from + ahead * row_stride + panel * panel_columns + 32 * half);
      for (int half = 0; half < 2; ++half) {
        const __mmask32 mask = mask32(n - panel * panel_columns - 32 * half);
        const __m512i e = _mm512_maskz_loadu_epi16(mask, even + 32 * half);
        const __m512i o = _mm512_maskz_loadu_epi16(2 * p + 1 < k ? mask : 0, even + row_stride + 32 * half);
        interleave(block + 128 * half, e, o);
      }
    }
}

void pack_panels_transposed(void* to, int64_t stride_bytes, const bf16* from, int64_t row_stride, int64_t k,
                            int64_t n, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel)
    for (int64_t x = 0; x < k; x += 32)
      for (int64_t group = 0; group < 4; ++group) {
        const __mmask32 mask = mask32(k - x);
        __m512i r[16];
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) {
          const int64_t row = panel * panel_columns + 16 * group + i;
          r[i] =
              row < n ? _mm512_maskz_loadu_epi16(mask, from + row * row_stride + x) : _mm512_setzero_si512();
        }
        transpose16(r);
        char* block = static_cast<char*>(to) + panel * stride_bytes + x / 2 * 256 + group * 64;
        const int64_t count = least(16, (k + 1 - x) / 2);
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i)
          if (i < count) _mm512_storeu_si512(block + i * 256, r[i]);
      }
}

void pack_slabs(void* to, const bf16* from, int64_t row_stride, int64_t k, int64_t m, int64_t first,
                int64_t last) {
  constexpr int64_t group = 4;  // pairs at a time, so that a slab gets whole cache lines
  const int64_t pairs = (k + 1) / 2;
  for (int64_t p0 = 0; p0 < pairs; p0 += group) {
    const int64_t columns = least(m, last * slab_rows);
    for (int64_t row = 2 * (p0 + group); row < least(k, 2 * (p0 + 2 * group)); ++row)
      for (int64_t c = first * slab_rows; c < columns; c += 32)
        __builtin_prefetch(from + row * row_stride + c);
    for (int64_t slab = first; slab < last; ++slab) {
      char* block = static_cast<char*>(to) + slab * slab_bytes(k);
      const int64_t width = m - slab * slab_rows, end = least(pairs, p0 + group);
      for (int64_t p = p0; p < end; ++p) {
        const bf16* even = from + 2 * p * row_stride + slab * slab_rows;
        __m128i e, o;
        if (width >= 8 && 2 * p + 1 < k) {
          e = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even));
          o = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even + row_stride));
        } else {
          const auto mask = static_cast<__mmask8>(width >= slab_rows ? 0x3f : (1 << width) - 1);
          e = _mm_maskz_loadu_epi16(mask, even);
          o = _mm_maskz_loadu_epi16(2 * p + 1 < k ? mask : 0, even + row_stride);
        }
        // The last two of eight are overwritten by the next pair, or fall into the slab's slack.
        __m128i* at = reinterpret_cast<__m128i*>(block + p * (slab_rows * 4));
        _mm_storeu_si128(at, _mm_unpacklo_epi16(e, o));
        _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(e, o));
      }
    }
  }
}

}  // namespace

extern const Bf16GemmTable bf16_gemm_table{gemm, buffer_floats, pack_panels, pack_panels_transposed,
                                           pack_slabs};

}  // namespace osprey::cpu::avx512_bf16

#else

namespace osprey::cpu::OSPREY_ISA {
extern const Bf16GemmTable
    bf16_gemm_table{};  // nothing here: kernels/cpu/bf16_product.h says so, and callers go to oneDNN
}  // namespace osprey::cpu::OSPREY_ISA

#endif
