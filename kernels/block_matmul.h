#pragma once
// Products of packed matrices: arithmetic on the codes, not on a rounded copy of the numbers.

#include <span>
#include <string_view>
#include <vector>

#include "kernels/quantize.h"

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

/// y (+)= factor * a b^T, the matrices of b stacked along their rows; with a rotation or a mask what
/// unrotate() makes of that, bit for bit of it in fp32.
/// Shapes: a (M, K), b[i] (N_i, K), y (M, sum N_i) f32 or bf16; all of one format, or of two with equal
/// block and granularity (mxint8 with mxfp4: an 8-bit input of a 4-bit layer). scratch (M, sum N_i) f32 where
/// block_matmul_wants_scratch() says so.
/// Numerics: kernels/numerics/block_product.h, on all CPUs the same bits, with two exceptions.
/// Where elements of both are integers times a constant (e2m1, int4, int8), the sum inside a block is exact
/// and the sums of blocks are added in fp32, first block first; other formats: fp32. The exceptions are CPUs
/// with tiles (AMX) and e8m0 scales on both sides, with more than 16 rows of a, or any number where elements
/// of either side are floats of 6 or 8 bits.
/// First, e2m1 or int4 on both sides (mxfp4, mxint4): the sum of eight blocks is exact where their scales
/// differ by no more than 2^3 in a's row and in b's; where they differ by more, blocks are grouped by their
/// scales, and the exact sums of pairs of groups (at most 64) are added in fp32.
/// Second, any other pair (mxint8, mxfp6 or mxfp8 on a side): numbers, each an element times its scale, are
/// multiplied as bf16, in which they are exact, and 32 products after the other are added in fp32, in the
/// tiles' order. Numbers, products and sums below 2^-126 count as zero, numbers from 2^128 on as Inf, which
/// quantize() leaves in no matrix.
/// What overflows fp32 is Inf, NaN or the largest float. An element depends on its row of a and its row of b,
/// and on whether a has more than 16 rows, on nothing else: not on the number of threads, other rows, or
/// `pack`. NaN scales make NaN.
/// GPUs of sm_80 and later differ for e8m0 scales of e2m1, int4 and int8, and e4m3 scales of e2m1 and int4:
/// products are exact there too, but tensor cores add them in fp32 in their own order
/// (kernels/cuda/block_product.h). For mxfp4 x mxfp4 with more than 64 rows of a
/// and a multiple of 16 of b, rows of y at multiples of 16 bytes, from sm_89 on, these are FP8 tensor cores,
/// whose sums may be off by e4m3_slack of sum |a||b|; an element then depends on the shapes as well, as the
/// library's choice of an algorithm does, but is the same in every run. Errors: throws when
/// shapes or formats do not fit.
struct BlockMatmul {
  Accum y;
  Packed a;
  std::span<const Packed> b;
  Tensor pack = {};  // as block_pack() left it, or undefined
  float factor = 1;
  Rotation rotation = {};
  Tensor mask = {};
  Tensor scratch = {};
};
/// Is there no engine here that unrotates what it multiplies?
bool block_matmul_wants_scratch(const Queue& queue, const BlockMatmul& args);
void block_matmul(const Queue& queue, const BlockMatmul& args);

/// Engines that can multiply these operands here, by name, the one that block_matmul() takes first; and
/// block_matmul() by one of them, for benches. Their numbers agree as far as is said above; what they are:
/// kernels/cpu/block_product.h, kernels/cuda/block_product.h. Errors: as block_matmul(); throws on a name
/// that is not among them, and on a rotation or a mask.
std::vector<std::string_view> block_matmul_engines(const Queue& queue, const BlockMatmul& args);
void block_matmul_by(std::string_view engine, const Queue& queue, const BlockMatmul& args);

/// What tests allow FP8 tensor cores to be off by, as a share of sum |a||b|. Hopper's are said to align the
/// products of an instruction, 32 of a row, to the largest, and to keep some 14 bits (DeepSeek-V3, arXiv
/// 2412.19437, section 3.3.2). By that model, with sums that move to fp32 every 128, random codes stay well
/// below this; the worst case, one product and 127 that are each just too small for its bits, is 2^-6. Not
/// measured.
inline constexpr double e4m3_slack = 1.0 / 2048;

}  // namespace osprey::kernels

namespace osprey::cpu {
int64_t block_pack_bytes(std::span<const Packed> b);
void block_pack(const Queue& queue, const kernels::BlockPack& args);
bool block_matmul_unrotates(const kernels::BlockMatmul& args);
void block_matmul(const Queue& queue, const kernels::BlockMatmul& args);
std::vector<std::string_view> block_matmul_engines(const Queue& queue, const kernels::BlockMatmul& args);
void block_matmul_by(std::string_view engine, const Queue& queue, const kernels::BlockMatmul& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
int64_t block_pack_bytes(std::span<const Packed> b);
void block_pack(const Queue& queue, const kernels::BlockPack& args);
void block_matmul(const Queue& queue, const kernels::BlockMatmul& args);
std::vector<std::string_view> block_matmul_engines(const Queue& queue, const kernels::BlockMatmul& args);
void block_matmul_by(std::string_view engine, const Queue& queue, const kernels::BlockMatmul& args);
}  // namespace osprey::cuda
