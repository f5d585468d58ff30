#include "kernels/pointwise.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

static void same(const char* op, const char* what, const Tensor& t, const Tensor& like) {
  require(t.rows() == like.rows() && t.cols() == like.cols() && t.dtype == like.dtype, op,
          "{} must be {}, got {}", what, like, t);
}

void copy(const Queue& queue, const Copy& c) {
  require(c.y.rows() == c.x.rows() && c.y.cols() == c.x.cols(), "copy", "y must be {}, got {}", c.x.shape,
          c.y.shape);
  require(c.x.dtype != DType::i32 || c.y.dtype == DType::i32, "copy", "no conversion from {} to {}",
          name(c.x.dtype), name(c.y.dtype));
  dispatch(queue, c, cpu::copy, cuda::copy);
}

void fill(const Queue& queue, const Fill& f) {
  require(f.y.dtype != DType::i32, "fill", "y must be f32, bf16 or f64, got {}", f.y);
  dispatch(queue, f, cpu::fill, cuda::fill);
}

void add(const Queue& queue, const Add& a) {
  same("add", "b", a.b, a.a);
  same("add", "y", a.y, a.a);
  dispatch(queue, a, cpu::add, cuda::add);
}

void add_bias(const Queue& queue, const AddBias& a) {
  same("add_bias", "y", a.y, a.x);
  require(a.bias.numel() == a.x.cols() && a.bias.dtype == a.x.dtype, "add_bias",
          "bias must be {} ({}), got {}", name(a.x.dtype), a.x.cols(), a.bias);
  dispatch(queue, a, cpu::add_bias, cuda::add_bias);
}

void bias_backward(const Queue& queue, const BiasBackward& b) {
  if (!b.dbias) return;
  require_shape("bias", "dbias", b.dbias.tensor, {b.dy.cols()});
  dispatch(queue, b, cpu::bias_backward, cuda::bias_backward);
}

static void check_swiglu(const Tensor& h, const Tensor& gate_up) {
  require(gate_up.rows() == h.rows() && gate_up.cols() == 2 * h.cols() && gate_up.dtype == h.dtype, "swiglu",
          "gate_up must be {} ({}, {}), got {}", name(h.dtype), h.rows(), 2 * h.cols(), gate_up);
}

void swiglu_forward(const Queue& queue, const SwigluForward& f) {
  check_swiglu(f.h, f.gate_up);
  dispatch(queue, f, cpu::swiglu_forward, cuda::swiglu_forward);
}

void swiglu_backward(const Queue& queue, const SwigluBackward& b) {
  check_swiglu(b.dh, b.gate_up);
  if (!b.dgate_up) return;
  require(!b.dgate_up.add, "swiglu", "gate_up has one reader; its gradient cannot be accumulated");
  same("swiglu", "dgate_up", b.dgate_up.tensor, b.gate_up);
  dispatch(queue, b, cpu::swiglu_backward, cuda::swiglu_backward);
}

void activation_forward(const Queue& queue, const ActivationForward& f) {
  same("activation", "y", f.y, f.x);
  dispatch(queue, f, cpu::activation_forward, cuda::activation_forward);
}

void activation_backward(const Queue& queue, const ActivationBackward& b) {
  same("activation", "dy", b.dy, b.x);
  if (!b.dx) return;
  require(!b.dx.add, "activation", "x has one reader; its gradient cannot be accumulated");
  same("activation", "dx", b.dx.tensor, b.x);
  dispatch(queue, b, cpu::activation_backward, cuda::activation_backward);
}

void embedding_forward(const Queue& queue, const EmbeddingForward& f) {
  require(f.weight.cols() == f.y.cols() && f.weight.dtype == f.y.dtype, "embedding",
          "weight must be {} (V, {}), got {}", name(f.y.dtype), f.y.cols(), f.weight);
  require(f.tokens.numel() == f.y.rows() && f.tokens.dtype == DType::i32, "embedding",
          "tokens must be i32 ({}), got {}", f.y.rows(), f.tokens);
  dispatch(queue, f, cpu::embedding_forward, cuda::embedding_forward);
}

void embedding_backward(const Queue& queue, const EmbeddingBackward& b) {
  if (!b.dweight) return;
  require(b.tokens.numel() == b.dy.rows() && b.dweight.tensor.cols() == b.dy.cols(), "embedding",
          "dy must be ({}, {}), got {}", b.tokens.numel(), b.dweight.tensor.cols(), b.dy);
  require(b.first_row >= 0 && b.first_row + b.dweight.tensor.rows() <= INT32_MAX, "embedding",
          "rows of a table are counted in 31 bits, got [{}, {})", b.first_row,
          b.first_row + b.dweight.tensor.rows());
  dispatch(queue, b, cpu::embedding_backward, cuda::embedding_backward);
}

}  // namespace osprey::kernels
