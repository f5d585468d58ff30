#include "kernels/magnitude.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

void require_numbers(const Queue& queue, const char* where, const char* what, const Tensor& t, int64_t n,
                     DType dtype) {
  require(t.dtype == dtype && t.contiguous() && t.numel() == n && t.device == queue.device, where,
          "{} must be {} contiguous elements of {} on the queue's device, got {}", what, n, name(dtype), t);
}

void require_outputs(const Queue& queue, const char* where, const char* what, const Tensor& t) {
  require(t.shape.rank == 2 && (t.dtype == DType::f32 || t.dtype == DType::bf16) && t.device == queue.device,
          where, "{} must be a matrix of f32 or bf16 on the queue's device, got {}", what, t);
}

}  // namespace

void row_norms(const Queue& queue, const RowNorms& a) {
  require(a.x.shape.rank == 2 && a.x.dtype == DType::f32 && a.x.device == queue.device, "row_norms",
          "x must be a matrix of f32 on the queue's device, got {}", a.x);
  require_numbers(queue, "row_norms", "norms", a.norms, a.x.rows(), DType::f32);
  dispatch(queue, a, cpu::row_norms, cuda::row_norms);
}

void scale_lengths(const Queue& queue, const ScaleLengths& a) {
  const char* where = "scale_lengths";
  require_outputs(queue, where, "y", a.y);
  require_numbers(queue, where, "base", a.base, a.y.cols(), DType::f32);
  require_numbers(queue, where, "norm", a.norm, a.y.cols(), DType::f32);
  require_numbers(queue, where, "change", a.change, a.y.cols(), a.y.dtype);
  dispatch(queue, a, cpu::scale_lengths, cuda::scale_lengths);
}

void length_gradient(const Queue& queue, const LengthGradient& a) {
  const char* where = "length_gradient";
  if (!a.dchange) return;
  require_outputs(queue, where, "dy", a.dy);
  require_shape(where, "y", a.y, a.dy.shape);
  require(a.y.dtype == a.dy.dtype && a.y.device == queue.device, where,
          "y must be {} on the queue's device as dy is, got {}", name(a.dy.dtype), a.y);
  require_numbers(queue, where, "dchange", a.dchange.tensor, a.dy.cols(), DType::f32);
  require_numbers(queue, where, "base", a.base, a.dy.cols(), DType::f32);
  require_numbers(queue, where, "change", a.change, a.dy.cols(), a.dy.dtype);
  dispatch(queue, a, cpu::length_gradient, cuda::length_gradient);
}

}  // namespace osprey::kernels
