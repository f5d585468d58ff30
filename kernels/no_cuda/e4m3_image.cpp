#include "kernels/e4m3_image.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void e4m3_image(const Queue&, const kernels::E4m3Image&) { absent("e4m3_image"); }
}  // namespace osprey::cuda
