#include "kernels/oscillation.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void track_oscillation(const Queue& queue, const TrackOscillation& a) {
  const char* where = "track_oscillation";
  require_packed(where, "y", a.y, queue.device);
  require(a.y.format.bits() == 4, where, "looks at codes of 4 bits, {} has {}", name(a.y.format),
          a.y.format.bits());
  const auto state = [&](const char* what, const Tensor& t, const Shape& shape, DType dtype) {
    require(t.dtype == dtype && t.contiguous() && t.device == queue.device, where,
            "{} must be contiguous {} on the queue's device, got {}", what, name(dtype), t);
    require_shape(where, what, t, shape);
  };
  state("last", a.last, {a.y.rows, a.y.cols}, DType::u8);
  state("rate", a.rate, {a.y.rows, a.y.cols}, DType::f32);
  state("sums", a.sums, {2}, DType::f64);
  if (a.y.format.scale == ScaleType::f32)
    require(!a.scales.defined(), where, "scales in f32 are not remembered");
  else
    state("scales", a.scales, a.y.scales.shape, DType::u8);
  dispatch(queue, a, cpu::track_oscillation, cuda::track_oscillation);
}

}  // namespace osprey::kernels
