#include "framework/ops/linear.h"

#include <array>

#include "framework/ops/adapter.h"
#include "framework/ops/calibration.h"
#include "framework/ops/pack_cache.h"
#include "framework/ops/quantized_linear.h"
#include "kernels/matmul.h"

namespace osprey {

namespace {

// What the closure keeps: parameters are looked up late.
struct Stacked {
  std::array<Parameter*, most_stacked_weights> params{};
  std::array<Var, most_stacked_weights> leaves{};
  size_t count = 0;
  const QuantScheme* calibrating = nullptr;  // where outliers are counted in this step

  std::span<Parameter* const> all() const { return {params.data(), count}; }
  std::array<Tensor, most_stacked_weights> values() const {
    std::array<Tensor, most_stacked_weights> v;
    for (size_t i = 0; i < v.size() && params[i]; ++i) v[i] = params[i]->value;
    return v;
  }
};

/// The gradient of a matrix that is trained in a subspace: one of its factors is projected, and the gradient
/// itself is never formed, but in a step that takes the basis from it.
void subspace_wgrad(Tape& t, Parameter& p, const Accum& gradient, const Tensor& dy, const Tensor& x) {
  const Queue& queue = t.queue();
  const Subspace& s = *p.subspace;
  const auto wgrad = [&](const Accum& into, const Tensor& d, const Tensor& in) {
    const int64_t out = d.cols();
    kernels::linear_wgrad(queue, {.dweights = {&into, 1}, .outs = {&out, 1}, .dy = d, .x = in});
  };
  if (s.refresh && !gradient.add) {
    Tensor whole;
    if (s.refresh->wants_gradient()) wgrad({whole = t.temp(p.shape, DType::f32), false}, dy, x);
    s.refresh->refresh(queue, p, whole);
  }
  const bool left = s.side == Subspace::Side::left;
  const Tensor h = t.temp({x.rows(), s.rank}, x.dtype);
  kernels::matmul(queue, {.c = h, .a = left ? dy : x, .b = s.basis, .op_b = kernels::Op::transpose});
  wgrad(gradient, left ? h : dy, left ? x : h);
}

void linear_backward(Tape& t, Var x, const Stacked& w, const Tensor& dy) {
  const Queue& queue = t.queue();
  std::array<Accum, most_stacked_weights> dweights;
  std::array<int64_t, most_stacked_weights> outs{};
  bool any = false;
  if (w.calibrating) {
    const auto values = w.values();
    count_patterns(t, *w.calibrating, t.value(x), {values.data(), w.count}, dy);
  }
  for (size_t i = 0, begin = 0; i < w.count; begin += static_cast<size_t>(outs[i++])) {
    outs[i] = w.params[i]->shape[0];
    const Accum gradient = t.grad(w.leaves[i]);
    if (gradient && w.params[i]->subspace) {
      const auto at = static_cast<int64_t>(begin);
      subspace_wgrad(t, *w.params[i], gradient, dy.columns(at, at + outs[i]), t.value(x));
      continue;
    }
    dweights[i] = gradient;
    any = any || dweights[i];
  }
  if (any)
    kernels::linear_wgrad(
        queue,
        {.dweights = {dweights.data(), w.count}, .outs = {outs.data(), w.count}, .dy = dy, .x = t.value(x)});
  if (!t.needs_grad(x)) return;
  const auto values = w.values();
  kernels::linear_dgrad(queue, {.dx = t.grad(x),
                                .dy = dy,
                                .weights = {values.data(), w.count},
                                .pack = packed_weights(queue, w.all(), kernels::PackFor::dgrad)});
}

}  // namespace

Var linear(Tape& t, Var x, std::span<Parameter* const> weights) {
  require(!weights.empty() && weights.size() <= most_stacked_weights, "linear", "1 to {} weights, got {}",
          most_stacked_weights, weights.size());
  for (const Parameter* p : weights)
    require(p->matrix(), "linear", "{} must be a matrix, got {}", p->name, p->shape);
  const QuantScheme* scheme = scheme_of(weights);
  if (scheme && !scheme->calibrates)
    return add_adapters(t, quantized_linear(t, x, weights, *scheme), x, weights);
  Stacked w;
  w.calibrating = scheme;
  int64_t out = 0;
  for (Parameter* p : weights) {
    out += p->shape[0];
    w.params[w.count] = p;
    w.leaves[w.count++] = t.leaf(*p);
  }
  const Tensor in = t.linear_input(weights[0]->name, t.value(x));  // (N, in)
  const Tensor y = t.alloc({in.rows(), out}, in.dtype);
  const auto values = w.values();
  kernels::linear_forward(t.queue(), {.y = y,
                                      .x = in,
                                      .weights = {values.data(), w.count},
                                      .pack = packed_weights(t.queue(), w.all(), kernels::PackFor::forward)});
  const Var result = t.record("linear", y, {x, w.leaves[0], w.leaves[1], w.leaves[2], w.leaves[3]},
                              [=, &t](Tensor dy) { linear_backward(t, x, w, dy); });
  return add_adapters(t, result, x, weights);
}

}  // namespace osprey
