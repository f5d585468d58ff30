#pragma once
// Products of packed matrices: one loop for every format and CPU, the definition as it is written; for
// integer elements two engines of CPUs with AVX512-VNNI: its dot products, and int8 tiles (AMX); and for e8m0
// scales tiles of bf16.
//
// All have the bits of the definition in kernels/numerics/block_product.h, with two exceptions:
//
// Int8 tiles, both scales e8m0, both elements of 4 bits: eight blocks of a row are written as int8 against
// one scale, codes shifted left by up to 3, and S is the exact sum of all eight. Blocks whose scales are more
// than 2^3 above the row's smallest one come in a second part, and so on, at most eight. Blocks of zeros take
// no part. S of each pair of parts is added on its own, first part first.
//
// Tiles of bf16: an element times its scale is a number of bf16, and tiles add the products of 32 k to the
// sum of a row in fp32, first k first.
//
// Either way a result depends on its row of a and its row of b and on nothing else.

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_product.h"

namespace osprey::cpu {

constexpr int64_t block_columns = 16;  // rows of b in a panel

/// Of rows of a matrix: what their elements and scales are. `block` elements share a scale; 0: all of a row.
struct BlockLayout {
  Element element;
  ScaleType scale;
  int64_t block;
};

/// A row of b where it lies. Codes and scales are null where there is none: it counts as zeros.
struct BlockColumn {
  const uint8_t* codes;
  const uint8_t* scales;
  float tensor_scale;
};

/// Panels, the layout of b for all but the definition: for every 16 rows of b, then rows that do not exist
/// being zero: the codes as [k / 8][16] 32-bit words of 4-bit codes as they lie, or [k / 4][16] of 8-bit ones
/// (6-bit ones are bytes too) with the even k of 8 in the first word and the odd in the second; the scales as
/// [k / block][16], bytes or f32; tensor scales as [16] f32. Both parts start at multiples of 64.
OSPREY_HD constexpr int64_t block_panel_codes(Element e, int64_t k) {
  return (k + 7) / 8 * (element_bits(e) == 4 ? 4 : 8) * 16;
}
OSPREY_HD constexpr int64_t block_panel_scales(const BlockLayout& b, int64_t k) {
  return ((b.block ? k / b.block : 1) * 16 * (b.scale == ScaleType::f32 ? 4 : 1) + 63) / 64 * 64;
}
OSPREY_HD constexpr int64_t block_panel_bytes(const BlockLayout& b, int64_t k) {
  return block_panel_codes(b.element, k) + block_panel_scales(b, k) + 64;
}

/// y[rows, columns] from rows of a and whole panels of b.
struct BlockGemm {
  BlockLayout a, b;
  int64_t k, rows, columns;
  const uint8_t* a_codes;
  const uint8_t* a_scales;
  int64_t a_code_stride, a_scale_stride;  // bytes from one row to the next
  const BlockColumn* b_columns;           // for by_definition()
  const uint8_t* b_panels;                // for the others
  char* y;
  int64_t y_row_bytes;
  int y_is_f32, add;
  float factor;  // the tensor scale of a included
  // For dot(), tiles() and bf16_tiles(): what is taken back before y is written, as kernels::Unrotate says.
  int turn_size;          // of the rotation; 0: none. Columns begin at a multiple
  float turn_factor;      // what sums of the rotation are multiplied by
  const uint32_t* signs;  // (turn_size): 0 or the sign bit of a float
  const uint8_t* mask;    // of row 0, column 0; or null
  int64_t mask_stride;
  void* buffer;  // aligned to 64
};

struct BlockGemmTable {
  void (*by_definition)(const BlockGemm&);
  int64_t (*definition_buffer_bytes)(const BlockGemm&);
  /// The rest is null where there is no VNNI. a and b with integer elements. Few rows (at most 16) read b as
  /// it is packed; others unpack it for some hundred rows of a at a time.
  void (*dot)(const BlockGemm&);
  int64_t (*dot_buffer_bytes)(const BlockGemm&);
  void (*few_rows)(const BlockGemm&);
  int64_t (*few_rows_buffer_bytes)(const BlockGemm&);
  /// Requires has_int8_tiles().
  void (*tiles)(const BlockGemm&);
  int64_t (*tiles_buffer_bytes)(const BlockGemm&);
  /// Requires has_bf16_tiles(), scales e8m0 of 32 elements.
  void (*bf16_tiles)(const BlockGemm&);
  int64_t (*bf16_tiles_buffer_bytes)(const BlockGemm&);
  void (*pack)(uint8_t* panel, const BlockLayout& b, int64_t k, const BlockColumn* columns, int64_t count);
};
OSPREY_ISA_TABLE(BlockGemmTable, block_gemm_table)

}  // namespace osprey::cpu
