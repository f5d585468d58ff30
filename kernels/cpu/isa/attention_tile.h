#pragma once
// 64 x 64 tiles for attention: packing, and the small matrix product they are fed to. Include from
// kernels/cpu/isa/attention*.cpp only.
//
// Operands are arrays of 32-bit words. A word is one fp32 value, or, where the CPU multiplies bf16,
// two bf16 values that follow each other along the reduced dimension. So every layout below is the
// same for both; only the multiply-add of two vectors of words differs.
//   rows    [64][K / per_word]   left operand: each row along the reduced dimension
//   panel   [K / per_word][N]    right operand: one row of N words for each step of the reduction

#include "kernels/cpu/isa/transpose.h"
#include "kernels/cpu/isa/vec.h"
#include "kernels/numerics/first_key.h"

namespace osprey::cpu::OSPREY_ISA {

constexpr int tile = 64;
constexpr float log2e = 1.44269504f;  // exponentials are taken in base 2
typedef uint16_t __attribute__((may_alias)) Half;

constexpr int strip = 16;  // rows of a tile handled at once, so that their scores stay in L1

/// fp32 words. `rounded`: values stand for bf16 ones, so probabilities are rounded to bf16 as they
/// would be on a CPU with bf16 instructions.
template <bool rounded>
struct WordsF32 {
  static constexpr int per_word = 1;
  OSPREY_INLINE Vec dot(Vec acc, Vec a, Vec b) { return acc + a * b; }
  OSPREY_INLINE Vec value(Vec v) {
    if constexpr (rounded) return (Vec)(bf16_bits(v) << 16);
    return v;
  }
  /// Writes the values as one piece of a left operand's row.
  OSPREY_INLINE void put_row(float* row, int column, Vec v) { store(row + column, value(v)); }
  /// Rows r and r + 1 (r even) of a right operand, at this column.
  OSPREY_INLINE void put_panel(float* panel, int r, int column, Vec even, Vec odd) {
    store(panel + r * tile + column, value(even));
    store(panel + (r + 1) * tile + column, value(odd));
  }
};

#if defined(__AVX512BF16__)
struct WordsBf16 {
  static constexpr int per_word = 2;
  OSPREY_INLINE Vec dot(Vec acc, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
  OSPREY_INLINE void put_row(float* row, int column, Vec v) {
    store(reinterpret_cast<bf16*>(row) + column, v);
  }
  OSPREY_INLINE void put_panel(float* panel, int r, int column, Vec even, Vec odd) {
    store(panel + (r / 2) * tile + column, (Vec)(bf16_bits(even) | (bf16_bits(odd) << 16)));
  }
};
using Bf16Words = WordsBf16;
#else
using Bf16Words = WordsF32<true>;
#endif

/// C (4, NV * lanes) = [C +] A B over `steps` words.
template <class W, int NV, bool add>
OSPREY_INLINE void gemm_block(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                              int steps) {
  Vec acc[4][NV];
  for (int r = 0; r < 4; ++r)
    for (int n = 0; n < NV; ++n) acc[r][n] = add ? load(c + r * ldc + n * lanes) : Vec{};
#pragma GCC unroll 2
  for (int s = 0; s < steps; ++s) {
    Vec right[NV];
    for (int n = 0; n < NV; ++n) right[n] = load(b + s * ldb + n * lanes);
    for (int r = 0; r < 4; ++r) {
      const Vec left = splat(a[r * lda + s]);
      for (int n = 0; n < NV; ++n) acc[r][n] = W::dot(acc[r][n], left, right[n]);
    }
  }
  for (int r = 0; r < 4; ++r)
    for (int n = 0; n < NV; ++n) store(c + r * ldc + n * lanes, acc[r][n]);
}

template <class W, int NV, bool add>
static void gemm_columns(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                         int m, int steps) {
  for (int r = 0; r < m; r += 4) gemm_block<W, NV, add>(c + r * ldc, ldc, a + r * lda, lda, b, ldb, steps);
}

/// C (m, n) = [C +] A (m, steps words) B (steps words, n); m a multiple of 4, n of 16.
template <class W, bool add>
OSPREY_INLINE void gemm(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                        int m, int n, int steps) {
#if defined(__AVX512F__)
  for (; n >= 64; n -= 64, c += 64, b += 64) gemm_columns<W, 4, add>(c, ldc, a, lda, b, ldb, m, steps);
  if (n == 48) gemm_columns<W, 3, add>(c, ldc, a, lda, b, ldb, m, steps);
  if (n == 32) gemm_columns<W, 2, add>(c, ldc, a, lda, b, ldb, m, steps);
  if (n == 16) gemm_columns<W, 1, add>(c, ldc, a, lda, b, ldb, m, steps);
#else
  for (; n > 0; n -= 2 * lanes, c += 2 * lanes, b += 2 * lanes)
    gemm_columns<W, 2, add>(c, ldc, a, lda, b, ldb, m, steps);
#endif
}

/// Asks for rows that will be read (or written) soon: they lie a whole row of the fused buffer
/// apart, which hardware does not foresee.
template <int write, class T>
static void prefetch_rows(const T* from, int64_t stride, int valid, int head_size) {
  for (int r = 0; r < valid; ++r)
    for (int d = 0; d < head_size; d += static_cast<int>(64 / sizeof(T)))
      __builtin_prefetch(from + r * stride + d, write, 2);
}

/// Left operand from `valid` rows of a matrix; the rest of the 64 rows is zero.
template <class W, class T>
static void pack_rows(float* rows, const T* from, int64_t stride, int valid, int head_size) {
  const int words = head_size / W::per_word;
  for (int r = 0; r < valid; ++r) {
    if constexpr (sizeof(T) * W::per_word == 4)
      memcpy(rows + r * words, from + r * stride, static_cast<size_t>(head_size) * sizeof(T));
    else
      for (int d = 0; d < head_size; ++d) rows[r * words + d] = to_float(from[r * stride + d]);
  }
  memset(rows + valid * words, 0, static_cast<size_t>((tile - valid) * words) * 4);
}

/// rows (64, D) -> panel (64 reduced, D padded to `padded` columns).
template <class W>
static void rows_to_panel(float* panel, const float* rows, int head_size, int padded) {
  if constexpr (W::per_word == 1) {
    for (int r = 0; r < tile; ++r) {
      memcpy(panel + r * padded, rows + r * head_size, static_cast<size_t>(head_size) * 4);
      for (int d = head_size; d < padded; ++d) panel[r * padded + d] = 0.0f;
    }
  } else {
    const Half* in = reinterpret_cast<const Half*>(rows);
    Word* out = reinterpret_cast<Word*>(panel);
    for (int r = 0; r < tile / 2; ++r) {
      const Half *even = in + 2 * r * head_size, *odd = even + head_size;
      for (int d = 0; d < head_size; ++d)
        out[r * padded + d] = static_cast<uint32_t>(even[d]) | (static_cast<uint32_t>(odd[d]) << 16);
      for (int d = head_size; d < padded; ++d) out[r * padded + d] = 0;
    }
  }
}

/// rows (64, D) -> panel (D reduced, 64).
template <class W>
static void rows_to_transposed_panel(float* panel, const float* rows, int head_size) {
  transpose(panel, tile, rows, head_size / W::per_word, tile, head_size / W::per_word);
}

/// Takes pieces of one block of memory, 64-byte aligned; with a null base it only counts.
struct Carver {
  char* base;
  int64_t used = 0;
  template <class T = float>
  T* take(int64_t count) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
};

}  // namespace osprey::cpu::OSPREY_ISA
