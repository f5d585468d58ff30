#include "kernels/attention.h"

#include "kernels/core/dispatch.h"

namespace osprey::kernels {

namespace {

/// Checks heads and tensors common to all passes; `rows` is N, or B when decoding.
struct Check {
  const char* where;
  const Queue& queue;
  int64_t rows, heads, head_size;
  DType dtype;

  Check(const char* where_, const Queue& queue_, const Tensor& q, int64_t head_size_)
      : where(where_), queue(queue_), rows(q.rows()), head_size(head_size_), dtype(q.dtype) {
    require(head_size >= 8 && head_size <= 256 && head_size % 8 == 0, where,
            "head size must be a multiple of 8 from 8 to 256, got {}", head_size);
    require(q.shape.rank == 2 && q.cols() > 0 && q.cols() % head_size == 0, where,
            "q must be (N, heads * {}), got {}", head_size, q);
    require(dtype == DType::bf16 || dtype == DType::f32, where, "q must be bf16 or f32, got {}", q);
    heads = q.cols() / head_size;
    device("q", q);
  }
  void device(const char* what, const Tensor& t) const {
    require(t.device == queue.device, where, "{} must be on the queue's device, {}, but is on {}", what,
            name(queue.device.kind), name(t.device.kind));
  }
  void matrix(const char* what, const Tensor& t, int64_t cols) const {
    require_shape(where, what, t, {rows, cols});
    require(t.dtype == dtype, where, "{} must be {} like q, got {}", what, name(dtype), t);
    device(what, t);
  }
  void kv(const char* what, const Tensor& t, const Tensor& other) const {
    require(t.cols() > 0 && t.cols() % head_size == 0 && heads % (t.cols() / head_size) == 0, where,
            "{} must have kv heads * {} columns, with kv heads dividing {}; got {}", what, head_size, heads,
            t);
    require(t.shape == other.shape, where, "k and v must have one shape, got {} and {}", t, other);
    require(t.dtype == dtype, where, "{} must be {} like q, got {}", what, name(dtype), t);
    device(what, t);
  }
  void sequences(int64_t batch) const {
    require(batch > 0 && rows % batch == 0, where, "{} rows are not {} equal sequences", rows, batch);
  }
  void lse(const Tensor& t, int64_t batch) const {
    require_shape(where, "lse", t, {batch, heads, rows / batch});
    require(t.dtype == DType::f32 && t.contiguous(), where, "lse must be contiguous f32, got {}", t);
    device("lse", t);
  }
  void starts(const Tensor& t) const {
    if (!t.defined()) return;
    require_shape(where, "document_start", t, {rows});
    require(t.dtype == DType::i32, where, "document_start must be i32, got {}", t);
    device("document_start", t);
  }
  void options(int64_t window, const std::optional<float>& scale, const std::optional<Clip>& clip,
               const Tensor& sink, const Tensor& gate) const {
    require(window >= 0, where, "window must be at least 1, or 0 for none, got {}", window);
    require(!scale || *scale > 0, where, "scale must be positive, got {}", scale.value_or(0));
    require(!clip || (clip->gamma <= 0 && clip->zeta >= 1), where,
            "clipped softmax needs gamma <= 0 and zeta >= 1, got gamma {} and zeta {}",
            clip ? clip->gamma : 0, clip ? clip->zeta : 0);
    if (sink.defined()) {
      require_shape(where, "sink", sink, {heads});
      require(sink.dtype == DType::f32 || sink.dtype == dtype, where, "sink must be f32 or {}, got {}",
              name(dtype), sink);
      device("sink", sink);
    }
    if (gate.defined()) {
      require(gate.cols() == heads || gate.cols() == heads * head_size, where,
              "gate must have {} (headwise) or {} (elementwise) columns, got {}", heads, heads * head_size,
              gate);
      matrix("gate", gate, gate.cols());
    }
  }
};

}  // namespace

void attention_forward(const Queue& queue, const AttentionForward& a) {
  const Check check("attention", queue, a.q, a.head_size);
  check.sequences(a.batch);
  check.kv("k", a.k, a.v);
  check.kv("v", a.v, a.k);
  require(a.k.rows() == check.rows, "attention", "k must have {} rows like q, got {}", check.rows, a.k);
  check.matrix("o", a.o, a.q.cols());
  check.lse(a.lse, a.batch);
  check.starts(a.document_start);
  check.options(a.window, a.scale, a.clip, a.sink, a.gate);
  dispatch(queue, a, cpu::attention_forward, cuda::attention_forward);
}

void attention_backward(const Queue& queue, const AttentionBackward& a) {
  const Check check("attention backward", queue, a.q, a.head_size);
  check.sequences(a.batch);
  check.kv("k", a.k, a.v);
  check.kv("v", a.v, a.k);
  require(a.k.rows() == check.rows, "attention backward", "k must have {} rows like q, got {}", check.rows,
          a.k);
  check.matrix("o", a.o, a.q.cols());
  check.matrix("dy", a.dy, a.q.cols());
  check.lse(a.lse, a.batch);
  check.starts(a.document_start);
  check.options(a.window, a.scale, a.clip, a.sink, a.gate);
  if (a.dq) check.matrix("dq", a.dq.tensor, a.q.cols());
  if (a.dk) check.matrix("dk", a.dk.tensor, a.k.cols());
  if (a.dv) check.matrix("dv", a.dv.tensor, a.v.cols());
  if (a.dgate) {
    require(a.gate.defined(), "attention backward", "dgate is wanted, but there is no gate");
    check.matrix("dgate", a.dgate.tensor, a.gate.cols());
  }
  if (a.dsink) {
    require(a.sink.defined(), "attention backward", "dsink is wanted, but there is no sink");
    require_shape("attention backward", "dsink", a.dsink.tensor, {check.heads});
    require(a.dsink.tensor.dtype == DType::f32, "attention backward", "dsink must be f32, got {}",
            a.dsink.tensor);
    check.device("dsink", a.dsink.tensor);
  }
  dispatch(queue, a, cpu::attention_backward, cuda::attention_backward);
}

void attention_decode(const Queue& queue, const AttentionDecode& a) {
  const Check check("attention decode", queue, a.q, a.head_size);
  require(a.k_cache.shape.rank == 3 && a.k_cache.shape[0] == check.rows && a.k_cache.shape[1] > 0,
          "attention decode", "k_cache must be ({}, capacity, kv heads * {}), got {}", check.rows,
          a.head_size, a.k_cache);
  check.kv("k_cache", a.k_cache, a.v_cache);
  check.kv("v_cache", a.v_cache, a.k_cache);
  check.matrix("o", a.o, a.q.cols());
  require_shape("attention decode", "lengths", a.lengths, {check.rows});
  require(a.lengths.dtype == DType::i32, "attention decode", "lengths must be i32, got {}", a.lengths);
  check.device("lengths", a.lengths);
  check.options(a.window, a.scale, a.clip, a.sink, a.gate);
  dispatch(queue, a, cpu::attention_decode, cuda::attention_decode);
}

}  // namespace osprey::kernels
