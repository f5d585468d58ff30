#pragma once
// Sixteen rows of mxfp4 at once, one in each lane of a vector: transforms, scales and roundings of 16 blocks
// are then arithmetic between registers, and a source that is read by columns needs no transposition.

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cpu {

constexpr int mxfp4_lanes = 16;
constexpr int64_t mxfp4_lanes_cols = 128;  // of a tile: codes of a row fill a cache line

/// A tile of y, 16 * groups rows and at most mxfp4_lanes_cols columns, a multiple of 32 and of `size`.
/// Pointers are to its first elements, strides in bytes. What comes out is what kernels/cpu/isa/quantize.h
/// finds row by row, bit for bit.
struct Mxfp4Lanes {
  // Element (r, c) of the tile: x[r][c] of rows, x[c][r] of columns.
  enum Source { rows_f32, rows_bf16, columns_f32, columns_bf16, columns_mxfp4 } source;
  const void* x;
  int64_t x_stride;
  const uint8_t* x_scales;  // of columns_mxfp4; row 0 of the tile is the first of a block, or its 17th
  int64_t x_scale_stride;
  int x_half;             // 1: it is the 17th
  int64_t groups, cols;   // groups: at most mxfp4_lanes_groups()
  int size;               // of a rotation; 0: none
  const uint32_t* signs;  // (size): 0 or the sign bit of a float
  float factor;           // what rotated numbers, or without a rotation all, are multiplied by
  ScaleRule rule;         // floor to mse
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
constexpr int64_t mxfp4_lanes_groups(Mxfp4Lanes::Source source, int size) {
  return source == Mxfp4Lanes::columns_bf16 ? 2 : source != Mxfp4Lanes::columns_mxfp4 ? 1 : size > 32 ? 2 : 8;
}

struct Mxfp4LanesTable {
  void (*quantize)(const Mxfp4Lanes&);  // null where there is no AVX-512
};
OSPREY_ISA_TABLE(Mxfp4LanesTable, mxfp4_lanes_table)

}  // namespace osprey::cpu
