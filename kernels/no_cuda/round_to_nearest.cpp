#include "kernels/round_to_nearest.h"

namespace osprey::cuda {
void round_to_nearest(const Queue&, const kernels::RoundToNearest&) {
  fail("cuda", "this build has no CUDA; set run.device: cpu");
}
}  // namespace osprey::cuda
