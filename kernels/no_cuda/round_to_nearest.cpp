#include "kernels/round_to_nearest.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void round_to_nearest(const Queue&, const kernels::RoundToNearest&) { absent("round_to_nearest"); }
}  // namespace osprey::cuda
