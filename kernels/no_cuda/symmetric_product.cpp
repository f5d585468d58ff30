#include "kernels/symmetric_product.h"

namespace osprey::cuda {
void symmetric_product(const Queue&, const kernels::SymmetricProduct&) {
  fail("symmetric_product", "built without CUDA");
}
}  // namespace osprey::cuda
