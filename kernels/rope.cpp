#include "kernels/rope.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

struct Check {
  const char* where;
  const Queue& queue;
  int64_t rows, head_size;
  DType dtype;

  void tensor(const char* what, const Tensor& t, const Shape& shape, DType wanted) const {
    require(t.shape == shape && t.dtype == wanted, where, "{} must be {} {}, got {}", what, name(wanted),
            shape, t);
    require(t.device == queue.device, where, "{} must be on the queue's device, {}, but is on {}", what,
            name(queue.device.kind), name(t.device.kind));
  }
  void heads(const char* what, const Tensor& t) const {
    require(t.shape.rank == 2 && t.cols() > 0 && t.cols() % head_size == 0, where,
            "{} must be ({}, heads * {}), got {}", what, rows, head_size, t);
    tensor(what, t, {rows, t.cols()}, dtype);
  }
  void weight(const char* what, const Tensor& t) const {
    if (t.defined()) tensor(what, t, {head_size}, dtype);
  }
};

Check check(const char* where, const Queue& queue, const Tensor& q, const Tensor& k, const Tensor& positions,
            int64_t head_size, double theta, const RopeScaling& scaling) {
  require(head_size >= 8 && head_size <= 256 && head_size % 8 == 0, where,
          "head size must be a multiple of 8 from 8 to 256, got {}", head_size);
  require(theta > 0, where, "theta must be positive, got {}", theta);
  require(scaling.factor >= 1 && scaling.magnitude > 0, where,
          "rotary positions need a factor of at least 1 and a positive magnitude, got {} and {}",
          scaling.factor, scaling.magnitude);
  require(scaling.kind == RopeScaling::Kind::none || scaling.kind == RopeScaling::Kind::linear ||
              (scaling.original_len >= 1 && scaling.slow > 0 && scaling.fast > scaling.slow),
          where, "llama3 and yarn need an original length and 0 < slow < fast, got {}, {} and {}",
          scaling.original_len, scaling.slow, scaling.fast);
  require(q.dtype == DType::bf16 || q.dtype == DType::f32, where, "q must be bf16 or f32, got {}", q);
  const Check c{where, queue, q.rows(), head_size, q.dtype};
  c.heads("q", q);
  c.heads("k", k);
  c.tensor("positions", positions, {c.rows}, DType::i32);
  return c;
}

}  // namespace

int64_t rope_partials(const Queue& queue, int64_t rows) {
  const int64_t most = queue.target() == DeviceKind::cuda ? 264 : 64;
  return std::min<int64_t>(most, std::max<int64_t>(1, rows / 16));
}

void rope_forward(const Queue& queue, const RopeForward& a) {
  const Check c = check("rope", queue, a.q, a.k, a.positions, a.head_size, a.theta, a.scaling);
  c.weight("q_weight", a.q_weight);
  c.weight("k_weight", a.k_weight);
  if (a.saved.defined()) c.tensor("saved", a.saved, {c.rows, a.q.cols() + a.k.cols()}, c.dtype);
  dispatch(queue, a, cpu::rope_forward, cuda::rope_forward);
}

void rope_backward(const Queue& queue, const RopeBackward& a) {
  const Check c = check("rope backward", queue, a.dy_q, a.dy_k, a.positions, a.head_size, a.theta, a.scaling);
  c.weight("q_weight", a.q_weight);
  c.weight("k_weight", a.k_weight);
  if (a.dx_q.defined()) c.tensor("dx_q", a.dx_q, a.dy_q.shape, c.dtype);
  if (a.dx_k.defined()) c.tensor("dx_k", a.dx_k, a.dy_k.shape, c.dtype);
  require(a.q_weight.defined() || !a.dq_weight, c.where, "dq_weight is wanted, but there is no q_weight");
  require(a.k_weight.defined() || !a.dk_weight, c.where, "dk_weight is wanted, but there is no k_weight");
  if (a.dq_weight) c.tensor("dq_weight", a.dq_weight.tensor, {a.head_size}, DType::f32);
  if (a.dk_weight) c.tensor("dk_weight", a.dk_weight.tensor, {a.head_size}, DType::f32);
  if (a.q_weight.defined() || a.k_weight.defined()) {
    c.tensor("saved", a.saved, {c.rows, a.dy_q.cols() + a.dy_k.cols()}, c.dtype);
    c.tensor("partial", a.partial, {rope_partials(queue, c.rows), 2 * a.head_size}, DType::f32);
  }
  dispatch(queue, a, cpu::rope_backward, cuda::rope_backward);
}

}  // namespace osprey::kernels
