#include "kernels/adamw.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void adamw(const Queue&, const kernels::AdamW&) { absent("adamw"); }
}  // namespace osprey::cuda
