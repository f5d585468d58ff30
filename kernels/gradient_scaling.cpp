#include "kernels/gradient_scaling.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {
namespace {

void check(const char* op, const Queue& queue, const char* what, const Tensor& t, const Shape& shape) {
  require_shape(op, what, t, shape);
  require(t.dtype == DType::f32 && t.contiguous(), op, "{} must be contiguous f32, got {}", what, t);
  require(t.device == queue.device, op, "{} is on {}, the queue on {}", what, name(t.device.kind),
          name(queue.device.kind));
}

int64_t count(Channels channels, const Shape& matrix) {
  return channels == Channels::rows ? matrix[0] : channels == Channels::columns ? matrix[1] : 1;
}

}  // namespace

void draw_normal(const Queue& queue, const DrawNormal& args) {
  check("draw_normal", queue, "y", args.y, args.y.shape);
  require(args.refresh_every >= 1, "draw_normal", "refresh_every must be at least 1, got {}",
          args.refresh_every);
  require_control("draw_normal", queue, args.control);
  dispatch(queue, args, cpu::draw_normal, cuda::draw_normal);
}

void scaling_factors(const Queue& queue, const ScalingFactors& args) {
  const char* const op = "scaling_factors";
  const Shape &matrix = args.gradient.shape, &low = args.direction.shape;
  require(matrix.rank == 2 && low.rank == 2, op, "gradient and direction must be matrices, got {} and {}",
          matrix, low);
  check(op, queue, "gradient", args.gradient, matrix);
  check(op, queue, "direction", args.direction, low);
  check(op, queue, "projected", args.projected, low);
  const bool fits = args.channels == Channels::whole ||
                    (args.channels == Channels::rows ? low[0] == matrix[0] : low[1] == matrix[1]);
  require(fits, op, "direction is {}, which has not the {} of gradient {}", low,
          args.channels == Channels::rows ? "rows" : "columns", matrix);
  check(op, queue, "factors", args.factors, {count(args.channels, matrix)});
  check(op, queue, "previous", args.previous, {1});
  require(args.growth >= 1, op, "growth must be at least 1, got {}", args.growth);
  require_control(op, queue, args.control);
  dispatch(queue, args, cpu::scaling_factors, cuda::scaling_factors);
}

void scale_channels(const Queue& queue, const ScaleChannels& args) {
  const char* const op = "scale_channels";
  require(args.x.shape.rank == 2, op, "x must be a matrix, got {}", args.x.shape);
  check(op, queue, "x", args.x, args.x.shape);
  check(op, queue, "y", args.y, args.x.shape);
  check(op, queue, "factors", args.factors, {count(args.channels, args.x.shape)});
  dispatch(queue, args, cpu::scale_channels, cuda::scale_channels);
}

}  // namespace osprey::kernels
