#pragma once
// Rows of mxfp4 as rows of E4M3 with one scale each: operands of FP8 tensor cores.

#include "kernels/block_format.h"
#include "kernels/core/queue.h"

namespace osprey::kernels {

/// x[r] = scales[r] * codes[r] in every number, for rows that are not wide.
/// Shapes: x (N, K) mxfp4; codes (N, K) u8, E4M3, rows may be strided; scales (N) f32, powers of two; wide
/// (N) i32, 1 where a row is wide and else 0. Numerics: exact, kernels/numerics/e4m3_image.h. A wide row
/// (numbers that take up more exponents than E4M3 has, or lie beyond 2^-65 to 2^65, or a scale that is NaN)
/// has codes 0 and scale 1, so that it adds nothing to a product. Errors: throws when shapes or formats do
/// not fit.
struct E4m3Image {
  Tensor codes, scales, wide;
  Packed x;
};
void e4m3_image(const Queue& queue, const E4m3Image& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void e4m3_image(const Queue& queue, const kernels::E4m3Image& args);
}  // namespace osprey::cpu
namespace osprey::cuda {
void e4m3_image(const Queue& queue, const kernels::E4m3Image& args);
}  // namespace osprey::cuda
