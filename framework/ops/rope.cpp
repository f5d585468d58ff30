#include "framework/ops/rope.h"

#include "kernels/rope.h"

namespace osprey {

namespace {

struct Heads {
  Tensor q, k;
};

Heads split(const Tensor& qkv, const RopeArgs& a) {
  const int64_t h = a.heads * a.head_size, g = a.kv_heads * a.head_size;
  require(qkv.cols() == h + 2 * g, "rope", "qkv must have ({} + 2 * {}) * {} columns, got {}", a.heads,
          a.kv_heads, a.head_size, qkv);
  return {qkv.columns(0, h), qkv.columns(h, h + g)};
}

}  // namespace

Var rope(Tape& t, Var qkv, const RopeArgs& args, Var q_norm, Var k_norm) {
  const Tensor x = t.value(qkv);
  const Heads heads = split(x, args);
  const Tensor positions = args.positions.view({args.positions.numel()});
  const bool norms = q_norm.valid() || k_norm.valid();
  const bool wanted = t.needs_grad(qkv) || t.needs_grad(q_norm) || t.needs_grad(k_norm);
  // Turning can be undone, so backward needs nothing. The norms cannot: dividing by a small weight
  // would blow up rounding errors. Their input is kept.
  const Tensor saved =
      norms && wanted ? t.alloc({x.rows(), heads.q.cols() + heads.k.cols()}, x.dtype) : Tensor{};
  kernels::rope_forward(t.queue(), {.q = heads.q,
                                    .k = heads.k,
                                    .positions = positions,
                                    .head_size = args.head_size,
                                    .theta = args.theta,
                                    .scaling = args.scaling,
                                    .q_weight = t.value_or_none(q_norm),
                                    .k_weight = t.value_or_none(k_norm),
                                    .eps = args.eps,
                                    .saved = saved});
  return t.record("rope", x, {qkv, q_norm, k_norm}, [=, &t](Tensor dy) {
    const Heads in = split(dy, args);
    // The value columns pass unchanged, so dy itself becomes the gradient of qkv and is turned in
    // place.
    const Heads out = t.needs_grad(qkv) ? split(t.take_grad(qkv, dy), args) : Heads{};
    const Tensor partial =
        norms ? t.temp({kernels::rope_partials(t.queue(), dy.rows()), 2 * args.head_size}, DType::f32)
              : Tensor{};
    kernels::rope_backward(t.queue(), {.dx_q = out.q,
                                       .dx_k = out.k,
                                       .dq_weight = t.grad(q_norm),
                                       .dk_weight = t.grad(k_norm),
                                       .dy_q = in.q,
                                       .dy_k = in.k,
                                       .positions = positions,
                                       .head_size = args.head_size,
                                       .theta = args.theta,
                                       .scaling = args.scaling,
                                       .q_weight = t.value_or_none(q_norm),
                                       .k_weight = t.value_or_none(k_norm),
                                       .eps = args.eps,
                                       .saved = saved,
                                       .partial = partial});
  });
}

}  // namespace osprey
