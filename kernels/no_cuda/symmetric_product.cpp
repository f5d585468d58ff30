#include "kernels/symmetric_product.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void symmetric_product(const Queue&, const kernels::SymmetricProduct&) { absent("symmetric_product"); }
}  // namespace osprey::cuda
