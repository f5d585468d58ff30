#include "kernels/oscillation.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void track_oscillation(const Queue&, const kernels::TrackOscillation&) { absent("track_oscillation"); }
}  // namespace osprey::cuda
