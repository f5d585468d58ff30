#pragma once
// Sixteen rows of packed blocks at once, one in each lane of a vector: transforms, scales and roundings of 16
// blocks are then arithmetic between registers, and a source that is read by columns needs no transposition.

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cpu {

constexpr int lanes_rows = 16;
constexpr int64_t lanes_cols = 128;  // of a tile: 4-bit codes of a row fill a cache line
constexpr int64_t lanes_step = 32;   // columns that are worked on together

/// A tile of y, 16 * groups rows and at most lanes_cols columns, a multiple of 32 and of `size`.
/// Pointers are to its first elements, strides in bytes. What comes out is what kernels/cpu/isa/quantize.h
/// finds row by row, bit for bit.
struct LanesTile {
  // Element (r, c) of the tile: x[r][c] of rows, x[c][r] of columns.
  enum Source { rows_f32, rows_bf16, columns_f32, columns_bf16, columns_mxfp4, columns_nvfp4 } source;
  const void* x;
  int64_t x_stride;
  const uint8_t* x_scales;  // of packed columns; row 0 of the tile is the first of a block
  int64_t x_scale_stride;
  float x_tensor_scale;   // of columns_nvfp4
  int64_t groups, cols;   // groups: at most lanes_groups()
  int size;               // of a rotation; 0: none
  const uint32_t* signs;  // (size): 0 or the sign bit of a float
  float factor;           // what rotated numbers, or without a rotation all, are multiplied by
  Element element;
  ScaleType scale;  // e8m0 for blocks of 32, e4m3 for blocks of 16 e2m1 or int4
  ScaleRule rule;
  TensorScale tensor;  // of e4m3
  int stochastic;
  uint64_t seed, stream, first_draw,
      draw_stride;  // draws of a row follow those of the row above after so many
  uint8_t* codes;
  int64_t code_stride;
  uint8_t* scales;
  int64_t scale_stride;
  uint8_t* mask;  // or null
  int64_t mask_stride;
};

/// So many groups have what they read in the same cache lines.
constexpr int64_t lanes_most_groups = 8;
constexpr int64_t lanes_groups(LanesTile::Source source, int size) {
  return source < LanesTile::columns_bf16    ? 1
         : source == LanesTile::columns_bf16 ? 2
         : size > 32                         ? 2
                                             : lanes_most_groups;
}

struct LanesTable {
  void (*quantize)(const LanesTile&);  // null where there is no AVX-512
  /// Magnitude bits of the largest finite number that quantize() would round.
  uint32_t (*largest)(const LanesTile&);
};
OSPREY_ISA_TABLE(LanesTable, lanes_table)

}  // namespace osprey::cpu
