#include "kernels/classifier.h"

#include "kernels/classifier_rows_chunks.h"
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
  if (a.log_sums.defined())
    require(a.log_sums.numel() == n && a.log_sums.dtype == DType::f32 && a.log_sums.contiguous() &&
                here(a.log_sums),
            "cross_entropy", "log_sums must be f32 ({}), got {}", n, a.log_sums);
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

int64_t classifier_rows_scratch(int64_t tokens, int64_t rows, DType dtype) {
  return ClassifierRowsChunks::of(tokens, rows, dtype).floats();
}

static void check(const Queue& queue, const ClassifierRows& a) {
  const int64_t n = a.x.rows(), c = a.x.cols(), rows = a.weight.rows();
  const auto here = [&](const Tensor& t) { return t.device == queue.device; };
  const auto of_tokens = [&](const char* what, const Tensor& t, DType dtype) {
    require(t.numel() == n && t.dtype == dtype && t.contiguous() && here(t), "cross_entropy",
            "{} must be {} ({}) on the queue's device, got {}", what, name(dtype), n, t);
  };
  of_tokens("targets", a.targets, DType::i32);
  of_tokens("log_sums", a.log_sums, DType::f32);
  require(a.weight.cols() == c && a.weight.dtype == a.x.dtype && here(a.weight) && here(a.x), "cross_entropy",
          "weight must be (R, {}) of x's dtype, got {}; x is {}", c, a.weight, a.x);
  require_shape("cross_entropy", "dweight", a.dweight, a.weight.shape);
  require(a.dweight.dtype == DType::f32 && a.dweight.contiguous() && here(a.dweight), "cross_entropy",
          "dweight must be f32 and contiguous");
  require(!a.grad_scale.defined() ||
              (a.grad_scale.numel() == 1 && a.grad_scale.dtype == DType::f64 && here(a.grad_scale)),
          "cross_entropy", "grad_scale must be f64 (1) on the queue's device, got {}", a.grad_scale);
  require(a.scratch.numel() >= classifier_rows_scratch(n, rows, a.x.dtype) && a.scratch.dtype == DType::f32 &&
              a.scratch.contiguous() && here(a.scratch),
          "cross_entropy", "scratch must be f32 ({}), got {}", classifier_rows_scratch(n, rows, a.x.dtype),
          a.scratch);
}

void classifier_rows(const Queue& queue, const ClassifierRows& args) {
  check(queue, args);
  dispatch(queue, args, cpu::classifier_rows, cuda::classifier_rows);
}

}  // namespace osprey::kernels
