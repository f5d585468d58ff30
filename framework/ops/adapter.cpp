#include "framework/ops/adapter.h"

#include <algorithm>
#include <array>

#include "framework/ops/magnitude.h"
#include "framework/ops/pack_cache.h"
#include "kernels/linear.h"
#include "kernels/magnitude.h"
#include "kernels/matmul.h"
#include "kernels/pointwise.h"
#include "kernels/quantize.h"

namespace osprey {

namespace {

using kernels::Op;

/// One weight's adapter, and the columns of y that are its weight's.
struct Adapted {
  Var a, b;
  Tensor h;  // scale (x a^T), (N, rank)
  float scale;
  int64_t begin, end;
};

struct AllAdapted {
  std::array<Adapted, most_stacked_weights> of{};
  size_t count = 0;
};

void wgrad(const Queue& queue, const Accum& into, const Tensor& dy, const Tensor& x) {
  if (!into) return;
  const int64_t out = dy.cols();
  kernels::linear_wgrad(queue, {.dweights = {&into, 1}, .outs = {&out, 1}, .dy = dy, .x = x});
}

void backward(Tape& t, Var y, Var x, const AllAdapted& all, const Tensor& dy) {
  const Queue& queue = t.queue();
  for (size_t i = 0; i < all.count; ++i) {
    const Adapted& one = all.of[i];
    const Tensor part = dy.columns(one.begin, one.end);
    wgrad(queue, t.grad(one.b), part, one.h);
    const Tensor dh = t.temp(one.h.shape, one.h.dtype);
    kernels::matmul(queue, {.c = dh, .a = part, .b = t.value(one.b), .alpha = one.scale});
    wgrad(queue, t.grad(one.a), dh, t.value(x));
    if (!t.needs_grad(x)) continue;
    const Accum dx = t.grad(x);
    kernels::matmul(queue, {.c = dx.tensor, .a = dh, .b = t.value(one.a), .beta = dx.add ? 1.0f : 0.0f});
  }
  t.pass_grad(y, dy);
}

/// Elements of a weight that are held in fp32 at a time.
constexpr int64_t panel_elements = int64_t{1} << 20;

/// Lengths of the rows of the weight, and of those with its adapter, a few rows at a time.
LengthChange lengths(Tape& t, const Parameter& p, const Adapted& one) {
  const Queue& queue = t.queue();
  const int64_t out = p.shape[0], in = p.shape[1], step = std::clamp<int64_t>(panel_elements / in, 1, out);
  const LengthChange c{.begin = one.begin,
                       .base = t.alloc({out}, DType::f32),
                       .norm = t.alloc({out}, DType::f32),
                       .change = t.leaf(*p.adapter->magnitude)};
  Arena& arena = t.arena();
  const int64_t mark = arena.mark();
  const Tensor panel = arena.alloc({step, in}, DType::f32);
  const auto part = [](const Tensor& v, int64_t begin, int64_t end) {
    return v.view({v.numel(), 1}).row_range(begin, end).view({end - begin});
  };
  for (int64_t begin = 0; begin < out; begin += step) {
    const int64_t end = std::min(out, begin + step);
    const Tensor rows = panel.row_range(0, end - begin);
    if (p.stored_format)
      kernels::dequantize(queue, {.y = rows, .x = p.packed.row_range(begin, end)});
    else
      kernels::copy(queue, {.y = rows, .x = p.value.row_range(begin, end)});
    kernels::row_norms(queue, {.norms = part(c.base, begin, end), .x = rows});
    kernels::matmul(queue, {.c = rows,
                            .a = t.value(one.b).row_range(begin, end),
                            .b = t.value(one.a),
                            .alpha = one.scale,
                            .beta = 1.0f});
    kernels::row_norms(queue, {.norms = part(c.norm, begin, end), .x = rows});
  }
  arena.rewind(mark);
  return c;
}

}  // namespace

Var add_adapters(Tape& t, Var y, Var x, std::span<Parameter* const> weights) {
  if (std::none_of(weights.begin(), weights.end(), [](const Parameter* p) { return p->adapter != nullptr; }))
    return y;
  const Queue& queue = t.queue();
  const Tensor in = t.value(x), out = t.value(y);
  AllAdapted all;
  std::array<LengthChange, most_stacked_weights> changes{};
  size_t changed = 0;
  int64_t begin = 0;
  for (const Parameter* p : weights) {
    const int64_t end = begin + p->shape[0];
    if (p->adapter) {
      Adapted& one = all.of[all.count++];
      one = {.a = t.leaf(*p->adapter->a),
             .b = t.leaf(*p->adapter->b),
             .h = t.alloc({in.rows(), p->adapter->a->shape[0]}, in.dtype),
             .scale = p->adapter->scale,
             .begin = begin,
             .end = end};
      kernels::matmul(queue,
                      {.c = one.h, .a = in, .b = t.value(one.a), .op_b = Op::transpose, .alpha = one.scale});
      kernels::matmul(queue, {.c = out.columns(begin, end),
                              .a = one.h,
                              .b = t.value(one.b),
                              .op_b = Op::transpose,
                              .beta = 1.0f});
      if (p->adapter->magnitude) changes[changed++] = lengths(t, *p, one);
    }
    begin = end;
  }
  const auto& o = all.of;
  const Var sum =
      t.record("adapters", out, {y, x, o[0].a, o[0].b, o[1].a, o[1].b, o[2].a, o[2].b, o[3].a, o[3].b},
               [=, &t](Tensor dy) { backward(t, y, x, all, dy); });
  return change_lengths(t, sum, {changes.data(), changed});
}

}  // namespace osprey
