#pragma once
// Packed weights as bf16, times a few rows of x by tiles (AMX); see kernels/cpu/packed_linear.cpp.

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/numerics/block_codec.h"

namespace osprey::cpu {

/// Of weights that are multiplied together, of x, and of k that one instruction takes.
constexpr int64_t tile_weights = 32, tile_rows = 16, tile_depth = 32;

/// Null where the CPU has no AVX512-BF16; begin(), multiply() and end() require has_bf16_tiles(). The sums
/// live in the tiles of the calling thread from begin() to end().
struct PackedTilesTable {
  /// What a row of mxfp4 stands for, `blocks` of 32; exact but for denormal bf16 numbers, which are rounded.
  void (*mxfp4_numbers)(bf16* w, const uint8_t* codes, const uint8_t* scales, int64_t blocks);
  /// What n codes of e2m1, int4 or int8 stand for, rounded to bf16; n a multiple of 32, scales[i] that of
  /// `block` elements (16, 32, 64 or 128, or n), all times `whole`.
  void (*numbers)(bf16* w, const uint8_t* codes, const float* scales, int64_t block, float whole, int64_t n,
                  Element e);
  void (*e4m3_scales)(float* scales, const uint8_t* codes, int64_t n);
  void (*begin)();
  /// sums += w x^T over `steps` of tile_depth k: w (tile_weights, ...) with rows `stride` elements apart, x
  /// in blocks of [tile_depth / 2][tile_rows] pairs of k.
  void (*multiply)(const bf16* w, int64_t stride, const uint32_t* x, int64_t steps);
  void (*end)(float* sums);  // (tile_weights, tile_rows)
};
OSPREY_ISA_TABLE(PackedTilesTable, packed_tiles_table)

}  // namespace osprey::cpu
