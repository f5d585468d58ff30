#pragma once
// Our own bf16 product for CPUs with AVX512-BF16, in the shape that linear layers want: B is packed
// once (a weight) or by a cheap interleave (activations in wgrad), A is read where it lies.
//
// Panels, the layout of B: for every 64 columns a block [k / 2][64][2] of bf16; rows and columns
// that do not exist are zero. One vdpbf16ps takes two consecutive k of 16 columns. Slabs, the
// layout of a transposed A: for every 6 rows a block [k / 2][6][2].

#include "kernels/cpu/isa.h"
#include "kernels/numerics/bf16.h"

namespace osprey::cpu {

constexpr int64_t panel_columns = 64;
constexpr int64_t slab_rows = 6;

constexpr int64_t panel_bytes(int64_t k) { return (k + 1) / 2 * panel_columns * 4; }
constexpr int64_t slab_bytes(int64_t k) {
  return ((k + 1) / 2 * slab_rows * 4 + 8 + 63) / 64 * 64;
}  // packing writes 8 bytes too far

/// c[rows, columns] = alpha a b (+ beta addend), for whole panels of columns. A row is summed in an order
/// that depends on k only, so callers may split rows and panels among threads as they like.
struct Bf16Gemm {
  const void* a;        // row-major bf16, even k; or slabs
  int64_t a_row_bytes;  // from one row to the next; 0: a is slabs
  const void* b;        // panels
  int64_t k;
  int64_t rows, columns;
  void* c;
  int64_t c_row_bytes;
  const void* addend;  // of c's type, may be c itself; or null
  int64_t addend_row_bytes;
  int c_is_f32;
  float alpha, beta;
  int upper;  // rows from (panel + 1) * panel_columns - first_row on are left out of a panel
  int64_t first_row;
  float* buffer;  // buffer_floats(k, columns)
};

struct Bf16GemmTable {
  void (*gemm)(const Bf16Gemm&);
  int64_t (*buffer_floats)(int64_t k, int64_t columns);
  /// Panels [first, last) of B (k, n) given row-major: two rows are interleaved. `stride_bytes`
  /// from one panel to the next, so that B may be stacked along k.
  void (*pack_panels)(void* to, int64_t stride_bytes, const bf16* from, int64_t row_stride, int64_t k,
                      int64_t n, int64_t first, int64_t last);
  /// The same for B = W^T, W (n, k) row-major.
  void (*pack_panels_transposed)(void* to, int64_t stride_bytes, const bf16* from, int64_t row_stride,
                                 int64_t k, int64_t n, int64_t first, int64_t last);
  /// Slabs [first, last) of A = X^T, X (k, m) row-major.
  void (*pack_slabs)(void* to, const bf16* from, int64_t row_stride, int64_t k, int64_t m, int64_t first,
                     int64_t last);
};
OSPREY_ISA_TABLE(Bf16GemmTable, bf16_gemm_table)

}  // namespace osprey::cpu
