#include "kernels/classifier.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

int64_t classifier_scratch(const Queue& queue, int64_t rows, int64_t vocabulary, DType dtype,
                           Gradients gradients) {
  return queue.target() == DeviceKind::cuda ? cuda::classifier_scratch(rows, vocabulary, dtype, gradients)
                                            : cpu::classifier_scratch(rows, vocabulary, dtype, gradients);
}

static void check(const Queue& queue, const Classifier& a) {
  const int64_t n = a.x.rows(), c = a.x.cols(), v = a.weight.rows();
  const auto here = [&](const Tensor& t) { return t.device == queue.device; };
  require(a.weight.shape.rank == 2 && a.weight.cols() == c && a.weight.dtype == a.x.dtype && v > 0,
          "cross_entropy", "weight must be (V, {}) of x's dtype, got {}; x is {}", c, a.weight, a.x);
  require(a.targets.numel() == n && a.targets.dtype == DType::i32 && a.targets.contiguous(), "cross_entropy",
          "targets must be i32 ({}), got {}", n, a.targets);
  if (a.dx.defined())
    require(a.dx.rows() == n && a.dx.cols() == c && a.dx.dtype == a.x.dtype && here(a.dx), "cross_entropy",
            "dx must be like x {}, got {}", a.x, a.dx);
  if (a.dweight) {
    require_shape("cross_entropy", "dweight", a.dweight.tensor, a.weight.shape);
    require(a.dweight.tensor.dtype == DType::f32, "cross_entropy", "dweight must be f32");
  }
  if (a.token_losses.defined())
    require(a.token_losses.numel() == n && a.token_losses.dtype == DType::f32 && a.token_losses.contiguous(),
            "cross_entropy", "token_losses must be f32 ({}), got {}", n, a.token_losses);
  const auto scalars = [&](const char* what, const Tensor& t, int64_t count, DType dtype) {
    require(t.numel() == count && t.dtype == dtype && t.contiguous() && here(t), "cross_entropy",
            "{} must be {} ({}) on the queue's device, got {}", what, name(dtype), count, t);
  };
  scalars("sums", a.sums, 2, DType::f64);
  if (a.grad_scale.defined()) scalars("grad_scale", a.grad_scale, 1, DType::f64);
  if (a.loss.defined()) scalars("loss", a.loss, 1, DType::f32);
  const Gradients gradients = a.dx.defined() || a.dweight ? Gradients::wanted : Gradients::none;
  const int64_t scratch = classifier_scratch(queue, n, v, a.x.dtype, gradients);
  require(a.scratch.numel() >= scratch && a.scratch.dtype == DType::f32 && a.scratch.contiguous(),
          "cross_entropy", "scratch must be f32 ({}), got {}", scratch, a.scratch);
  require(here(a.x) && here(a.weight) && here(a.targets) && here(a.scratch), "cross_entropy",
          "operands must be on the queue's device, {}", name(queue.device.kind));
}

void classifier(const Queue& queue, const Classifier& args) {
  check(queue, args);
  dispatch(queue, args, cpu::classifier, cuda::classifier);
}

}  // namespace osprey::kernels
