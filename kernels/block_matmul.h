#pragma once
// Products of packed matrices: arithmetic on the codes, not on a rounded copy of the numbers.

#include <span>

#include "kernels/block_format.h"
#include "kernels/core/queue.h"

namespace osprey::kernels {

/// Bytes of the form of `b` that the product reads fastest; 0 where this device has no use for one.
int64_t block_pack_bytes(const Queue& queue, std::span<const Packed> b);

/// Rearranges b for block_matmul(). Valid until b changes.
/// Shapes: pack one dimension u8, block_pack_bytes() elements, aligned to 64 bytes.
struct BlockPack {
  Tensor pack;
  std::span<const Packed> b;
};
void block_pack(const Queue& queue, const BlockPack& args);

/// y (+)= factor * a b^T, the matrices of b stacked along their rows.
/// Shapes: a (M, K), b[i] (N_i, K), y (M, sum N_i) f32 or bf16; all of one format, or of two with equal
/// block and granularity (mxint8 with mxfp4: an 8-bit input of a 4-bit layer).
/// Numerics: where elements of both are integers times a constant (e2m1, int4, int8), the sum inside a block
/// is exact and the sums of blocks are added in fp32, in an order that depends on shapes only; other formats:
/// fp32. NaN scales make NaN. The number of threads changes no bit. Errors: throws when shapes or formats do
/// not fit.
struct BlockMatmul {
  Accum y;
  Packed a;
  std::span<const Packed> b;
  Tensor pack = {};  // as block_pack() left it, or undefined
  float factor = 1;
};
void block_matmul(const Queue& queue, const BlockMatmul& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
int64_t block_pack_bytes(std::span<const Packed> b);
void block_pack(const Queue& queue, const kernels::BlockPack& args);
void block_matmul(const Queue& queue, const kernels::BlockMatmul& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
int64_t block_pack_bytes(std::span<const Packed> b);
void block_pack(const Queue& queue, const kernels::BlockPack& args);
void block_matmul(const Queue& queue, const kernels::BlockMatmul& args);
}  // namespace osprey::cuda
