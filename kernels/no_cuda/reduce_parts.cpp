#include "kernels/reduce_parts.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void reduce_parts(const Queue&, const kernels::ReduceParts&) { absent("reduce_parts"); }
}  // namespace osprey::cuda
