#include "kernels/gradient_scaling.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void draw_normal(const Queue&, const kernels::DrawNormal&) { absent("draw_normal"); }
void scaling_factors(const Queue&, const kernels::ScalingFactors&) { absent("scaling_factors"); }
void scale_channels(const Queue&, const kernels::ScaleChannels&) { absent("scale_channels"); }
}  // namespace osprey::cuda
