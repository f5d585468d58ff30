#include "kernels/e4m3_image.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

void e4m3_image(const Queue& queue, const E4m3Image& args) {
  const char* where = "e4m3_image";
  const Packed& x = args.x;
  require_packed(where, "x", x, queue.device);
  require(x.format == block_format("mxfp4"), where, "x must be mxfp4, got {}", name(x.format));
  const auto part = [&](const char* what, const Tensor& t, const Shape& shape, DType dtype) {
    require(t.shape == shape && t.dtype == dtype && t.device == queue.device, where,
            "{} must be {} {} on {}, got {}", what, name(dtype), shape, name(queue.device.kind), t);
  };
  part("codes", args.codes, {x.rows, x.cols}, DType::u8);
  part("scales", args.scales, {x.rows}, DType::f32);
  part("wide", args.wide, {x.rows}, DType::i32);
  if (x.rows == 0) return;
  dispatch(queue, args, cpu::e4m3_image, cuda::e4m3_image);
}

}  // namespace osprey::kernels
