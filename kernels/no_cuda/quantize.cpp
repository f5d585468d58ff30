#include "kernels/quantize.h"

#include "kernels/no_cuda/absent.h"

namespace osprey::cuda {
void quantize(const Queue&, const kernels::Quantize&) { absent("quantize"); }
void dequantize(const Queue&, const kernels::Dequantize&) { absent("dequantize"); }
void unrotate(const Queue&, const kernels::Unrotate&) { absent("unrotate"); }
void measure_quantization(const Queue&, const kernels::MeasureQuantization&) {
  absent("measure_quantization");
}
}  // namespace osprey::cuda
