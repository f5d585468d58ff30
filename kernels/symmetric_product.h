#pragma once
// Products that are symmetric, computed once.

#include "kernels/core/queue.h"

namespace osprey::kernels {

/// c = alpha a a^T + beta addend, for an addend that is symmetric (or beta = 0).
/// Shapes: a (M, K), c and addend (M, M), all bf16 or all f32, contiguous; or all with one leading batch
/// dimension. Aliasing: c overlaps neither a nor an addend that is not c itself.
/// Numerics: blocks on and right of the diagonal are computed with sums in fp32 and rounded once; the others
/// are their mirror images, so c is exactly symmetric outside the diagonal blocks, which are at most 128
/// wide. The number of threads does not change the result.
struct SymmetricProduct {
  Tensor c;
  Tensor a;
  float alpha = 1.0f;
  float beta = 0.0f;
  Tensor addend = {};  // undefined: c itself
};
void symmetric_product(const Queue& queue, const SymmetricProduct& args);

}  // namespace osprey::kernels

namespace osprey::cpu {
void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args);
}
namespace osprey::cuda {
void symmetric_product(const Queue& queue, const kernels::SymmetricProduct& args);
}
