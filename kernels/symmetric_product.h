#pragma once
// Products that are symmetric, computed once.

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// c = alpha a a^T + beta c, for a c that is symmetric before (or beta = 0).
/// Shapes: a (M, K), c (M, M), both bf16 or both f32, contiguous; or both with one leading batch dimension.
/// Aliasing: c does not overlap a.
/// Numerics: blocks on and right of the diagonal are computed with sums in fp32 and rounded once; the others
/// are their mirror images, so c is exactly symmetric outside the diagonal blocks, which are at most 128
/// wide. The number of threads does not change the result.
struct SymmetricProduct {
  Tensor c;
  Tensor a;
  float alpha = 1.0f;
  float beta = 0.0f;
};
void symmetric_product(const Queue& queue, const SymmetricProduct& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args);
}
namespace osprey::cuda {
void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args);
}
