#include "framework/ops/linear.h"

#include <array>

#include "framework/ops/calibration.h"
#include "framework/ops/pack_cache.h"
#include "framework/ops/quantized_linear.h"

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

void linear_backward(Tape& t, Var x, const Stacked& w, const Tensor& dy) {
  const Queue& queue = t.queue();
  std::array<Accum, most_stacked_weights> dweights;
  std::array<int64_t, most_stacked_weights> outs{};
  bool any = false;
  if (w.calibrating) {
    const auto values = w.values();
    count_patterns(t, *w.calibrating, t.value(x), {values.data(), w.count}, dy);
  }
  for (size_t i = 0; i < w.count; ++i) {
    outs[i] = w.params[i]->shape[0];
    dweights[i] = t.grad(w.leaves[i]);
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
  if (scheme && !scheme->calibrates) return quantized_linear(t, x, weights, *scheme);
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
  return t.record("linear", y, {x, w.leaves[0], w.leaves[1], w.leaves[2], w.leaves[3]},
                  [=, &t](Tensor dy) { linear_backward(t, x, w, dy); });
}

}  // namespace osprey
