#include "framework/ops/attention.h"

#include <cmath>

namespace osprey {

namespace {

/// The columns of a fused (N, (H + 2G) D) buffer.
struct Fused {
  Tensor q, k, v;
};

Fused split(const Tensor& qkv, const AttentionArgs& a) {
  if (!qkv.defined()) return {};
  const int64_t h = a.heads * a.head_size, g = a.kv_heads * a.head_size;
  require(qkv.cols() == h + 2 * g, "attention", "qkv must have ({} + 2 * {}) * {} columns, got {}", a.heads,
          a.kv_heads, a.head_size, qkv);
  return {qkv.columns(0, h), qkv.columns(h, h + g), qkv.columns(h + g, h + 2 * g)};
}

Tensor flat(const Tensor& t) { return t.defined() ? t.view({t.numel()}) : t; }

}  // namespace

Var attention(Tape& t, Var qkv, const AttentionArgs& args, Var gate, Var sink) {
  const Tensor fused = t.value(qkv);
  const Fused in = split(fused, args);
  const Tensor o = t.alloc({fused.rows(), args.heads * args.head_size}, fused.dtype);
  const Tensor lse = t.alloc({args.batch, args.heads, fused.rows() / args.batch}, DType::f32);
  kernels::attention_forward(t.queue(), {.o = o,
                                         .lse = lse,
                                         .q = in.q,
                                         .k = in.k,
                                         .v = in.v,
                                         .batch = args.batch,
                                         .head_size = args.head_size,
                                         .document_start = flat(args.document_start),
                                         .window = args.window,
                                         .clip = args.clip,
                                         .sink = t.value_or_none(sink),
                                         .gate = t.value_or_none(gate)});
  if (Tap* tap = t.tap())
    tap->observe_attention(t.current_layer(),
                           {.q = in.q,
                            .k = in.k,
                            .lse = lse,
                            .batch = args.batch,
                            .tokens = lse.shape[2],
                            .heads = args.heads,
                            .kv_heads = args.kv_heads,
                            .head_size = args.head_size,
                            .window = args.window,
                            .scale = 1.0f / std::sqrt(static_cast<float>(args.head_size))});
  return t.record("attention", o, {qkv, gate, sink}, [=, &t](Tensor dy) {
    const Fused x = split(t.value(qkv), args);
    const Accum grad = t.grad(qkv);
    const Fused d = split(grad.tensor, args);
    kernels::attention_backward(t.queue(), {.dq = {d.q, grad.add},
                                            .dk = {d.k, grad.add},
                                            .dv = {d.v, grad.add},
                                            .dgate = t.grad(gate),
                                            .dsink = t.grad(sink),
                                            .dy = dy,
                                            .o = o,
                                            .lse = lse,
                                            .q = x.q,
                                            .k = x.k,
                                            .v = x.v,
                                            .batch = args.batch,
                                            .head_size = args.head_size,
                                            .document_start = flat(args.document_start),
                                            .window = args.window,
                                            .clip = args.clip,
                                            .sink = t.value_or_none(sink),
                                            .gate = t.value_or_none(gate)});
  });
}

Var cached_attention(Tape& t, Var qkv, const AttentionArgs& args, Var gate, Var sink, const Tensor& key_cache,
                     const Tensor& value_cache, const Tensor& lengths) {
  require(!t.recording(), "cached attention", "is for evaluation: it has no backward");
  const Tensor fused = t.value(qkv);
  const Fused in = split(fused, args);
  const Tensor o = t.alloc({fused.rows(), args.heads * args.head_size}, fused.dtype);
  kernels::attention_decode(t.queue(), {.o = o,
                                        .q = in.q,
                                        .k_cache = key_cache,
                                        .v_cache = value_cache,
                                        .lengths = lengths,
                                        .k = in.k,
                                        .v = in.v,
                                        .head_size = args.head_size,
                                        .window = args.window,
                                        .clip = args.clip,
                                        .sink = t.value_or_none(sink),
                                        .gate = t.value_or_none(gate)});
  return t.record("cached_attention", o, {qkv}, [](Tensor) {});
}

}  // namespace osprey
