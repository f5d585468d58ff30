#include "framework/ops/quantized_linear.h"

#include "framework/ops/outlier_rows.h"
#include "framework/ops/quantized_weights.h"
#include "framework/quant/step_sizes.h"
#include "kernels/block_matmul.h"
#include "kernels/core/random.h"
#include "kernels/linear.h"
#include "kernels/numerics/step_size.h"
#include "kernels/packed_linear.h"
#include "kernels/quantize.h"
#include "kernels/step_size.h"

namespace osprey {

namespace {

using kernels::Rotation;
using Mask = QuantGroupSpec::GradientMask;

/// What the closure keeps: parameters are looked up late.
struct Layer {
  const QuantScheme* scheme = nullptr;
  std::array<Parameter*, most_stacked_weights> params{};
  std::array<Var, most_stacked_weights> leaves{}, steps{};  // steps: where they are learnt
  size_t count = 0;
  Var x, input_step;
  Packed packed_x;  // where activations have a format
  Tensor mask_x;

  const QuantGroupSpec& spec() const { return *scheme->spec; }
  std::span<Parameter* const> all() const { return {params.data(), count}; }
  int64_t out() const {
    int64_t sum = 0;
    for (size_t i = 0; i < count; ++i) sum += params[i]->shape[0];
    return sum;
  }
  int64_t in() const { return params[0]->shape[1]; }
};

using Role = QuantizationWatch::Role;

/// Tells whoever watches what forward has quantized.
void report(const Tape& t, const Layer& l, const QuantizedWeights& w) {
  QuantizationWatch* watch = t.forward_watch();
  if (!watch) return;
  const int layer = t.current_layer();
  for (size_t i = 0; i < l.count && l.spec().weights; ++i) {
    if (l.params[i]->stored_format) continue;  // what it lost is not here
    watch->quantized(layer, l.params[i]->name, Role::weights,
                     {.sums = {},
                      .x = l.params[i]->value,
                      .y = w.packed[i],
                      .rotation = forward_rotation(*l.scheme),
                      .rule = l.spec().weights->scale});
  }
  if (l.spec().activations)
    watch->quantized(layer, l.params[0]->name, Role::activations,
                     {.sums = {},
                      .x = t.value(l.x),
                      .y = l.packed_x,
                      .rotation = forward_rotation(*l.scheme),
                      .rule = l.spec().activations->scale});
}

Packed temp_packed(Tape& t, const BlockFormat& format, int64_t rows, int64_t cols) {
  return make_packed(format, rows, cols, [&](const Shape& s, DType d) { return t.temp(s, d); });
}

Tensor forward(Tape& t, Layer& l) {
  const QuantGroupSpec& spec = l.spec();
  const Tensor x = t.value(l.x);
  const QuantizedWeights& w = quantized_weights(t.queue(), l.all(), *l.scheme);
  const Tensor y = t.alloc({x.rows(), l.out()}, x.dtype);
  const auto keep = [&](const Shape& s, DType d) { return t.alloc(s, d); };
  if (spec.activations) {
    l.packed_x = make_packed(spec.activations->block_format(), x.rows(), x.cols(), keep);
    if (spec.gradient_mask == Mask::unclipped) l.mask_x = keep({x.rows(), x.cols() / 8}, DType::u8);
    kernels::quantize(t.queue(), {.y = l.packed_x,
                                  .x = x,
                                  .rule = spec.activations->scale,
                                  .rotation = forward_rotation(*l.scheme),
                                  .mask = l.mask_x,
                                  .step = t.value_or_none(l.input_step)});
  }
  report(t, l, w);
  if (multiplies_packed(spec)) {
    kernels::block_matmul(t.queue(), {.y = {y}, .a = l.packed_x, .b = w.all_packed(), .pack = w.block_pack});
    return y;
  }
  if (spec.weights && !spec.activations) {
    Arena& arena = t.arena();
    const int64_t mark = arena.mark();
    Tensor scratch;
    if (const int64_t n = kernels::packed_linear_scratch(t.queue(), x.rows(), w.all_packed()))
      scratch = arena.alloc({n}, x.dtype);
    kernels::packed_linear(t.queue(), {.y = y, .x = x, .weights = w.all_packed(), .scratch = scratch});
    arena.rewind(mark);
    return y;
  }
  Tensor dense = x;
  if (spec.activations) {
    dense = keep({x.rows(), x.cols()}, x.dtype);
    kernels::dequantize(t.queue(), {.y = dense, .x = l.packed_x});
  }
  kernels::linear_forward(t.queue(),
                          {.y = y, .x = dense, .weights = w.all_images(), .pack = {}, .residual = {}});
  return y;
}

/// Do blocks stand for themselves, so that operands of several weights can be one matrix?
bool blocks_alone(const BlockFormat& f) {
  return f.granularity == Granularity::block && f.scale != ScaleType::e4m3;
}

/// What a product in the basis of forward's operands still lacks; as unrotate() has them.
struct Landing {
  Rotation rotation;
  Tensor mask;
  explicit operator bool() const { return rotation || mask.defined(); }
};

/// The backward of one layer. Both products are formed in the rotated basis, and landed where they belong.
struct LinearBackward {
  Tape& t;
  const Layer& l;
  const Tensor& dy;
  const QuantGroupSpec& spec = l.spec();
  const QuantizedWeights& w = quantized_weights(t.queue(), l.all(), *l.scheme);

  Rotation draws(const char* product, bool rotated) const {
    const DrawIndex& at = t.draw_index();
    return {.size = rotated ? static_cast<int>(spec.backward_rotation) : 0,
            .seed = l.scheme->seed,
            .stream = stream_of(l.params[0]->name + product) + (static_cast<uint64_t>(at.micro_batch) << 32),
            .step = at.step};
  }

  void land(const Accum& to, const Tensor& product, const Landing& how) const {
    kernels::unrotate(t.queue(), {.y = to, .x = product, .mask = how.mask, .rotation = how.rotation});
  }
  /// For a product that cannot land by itself: calls product(where) and lands it.
  template <class Product>
  void land_after(const Accum& to, DType dtype, const Landing& how, const Product& product) const {
    if (!how) return product(to);
    const Tensor in_basis = t.temp(to.tensor.shape, dtype);
    product(Accum{in_basis});
    land(to, in_basis, how);
  }
  /// A learnt step, or none, and what was quantized with it; `shared` numbers have it, or those of a token.
  struct Stepped {
    Var step;
    Tensor x;
    const std::optional<QuantOperandSpec>& how;
    int64_t shared;
    bool wanted(const Tape& t) const { return t.needs_grad(step); }
  };
  Stepped stepped_weight(size_t i) const {
    const Shape& shape = l.params[i]->shape;
    const bool by_row = l.steps[i].valid() && t.value(l.steps[i]).numel() == shape[0];
    return {l.steps[i], l.params[i]->value, spec.weights, by_row ? shape[1] : shape.numel()};
  }
  Stepped stepped_input() const { return {l.input_step, t.value(l.x), spec.activations, l.in()}; }

  /// Calls product(where, what it lacks there), the gradient of what was quantized, if anybody wants it: at
  /// `to`, and in the gradient of a step.
  template <class Product>
  void landed(const Accum& to, DType dtype, const Tensor& mask, const Stepped& stepped,
              const Product& product) const {
    const Landing how{forward_rotation(*l.scheme), mask};
    if (!stepped.wanted(t)) {
      if (to) product(to, how);
      return;
    }
    const Tensor in_basis = t.temp(stepped.x.shape, dtype);
    product(Accum{in_basis}, Landing{});
    const Element e = stepped.how->block_format().element;
    kernels::step_gradient(t.queue(), {.dstep = t.grad(stepped.step),
                                       .dy = in_basis,
                                       .x = stepped.x,
                                       .step = t.value(stepped.step),
                                       .element = e,
                                       .factor = step_gradient_scale(e, stepped.shared)});
    if (to) land(to, in_basis, how);
  }

  Tensor dense_x() const {
    if (!spec.activations) return t.value(l.x);
    const Tensor image = t.temp({l.packed_x.rows, l.packed_x.cols}, dy.dtype);
    kernels::dequantize(t.queue(), {.y = image, .x = l.packed_x});
    return image;
  }

  bool any_weight_wanted() const {
    for (size_t i = 0; i < l.count; ++i)
      if (t.needs_grad(l.leaves[i]) || stepped_weight(i).wanted(t)) return true;
    return false;
  }
  int64_t outs_before(size_t i) const {
    int64_t sum = 0;
    for (size_t k = 0; k < i; ++k) sum += l.params[k]->shape[0];
    return sum;
  }
  /// The part of dy that belongs to weights [first, last).
  Tensor dy_of(size_t first, size_t last) const { return dy.columns(outs_before(first), outs_before(last)); }
  /// f(first, last) for the weights whose operands of backward are one matrix.
  template <class F>
  void each_stack(const F& f) const {
    const size_t step = blocks_alone(spec.gradients->block_format()) ? l.count : 1;
    for (size_t i = 0; i < l.count; i += step) f(i, i + step);
  }
  /// Lands product(where, what it lacks there), the gradient of weight i.
  template <class Product>
  void weight_gradient(size_t i, const Product& product) const {
    landed(t.grad(l.leaves[i]), DType::f32, w.masks[i], stepped_weight(i), product);
  }

  void weights_dense() const {
    const Tensor x = dense_x();
    for (size_t i = 0; i < l.count; ++i)
      weight_gradient(i, [&](const Accum& to, const Landing& how) {
        land_after(to, DType::f32, how, [&](const Accum& at) {
          const int64_t out = l.params[i]->shape[0];
          kernels::linear_wgrad(t.queue(),
                                {.dweights = {&at, 1}, .outs = {&out, 1}, .dy = dy_of(i, i + 1), .x = x});
        });
      });
  }

  void input_dense() const {
    std::array<Tensor, most_stacked_weights> images = w.images;
    for (size_t i = 0; i < l.count; ++i) {
      if (images[i].defined()) continue;
      images[i] = t.temp(l.params[i]->shape, dy.dtype);
      kernels::dequantize(t.queue(), {.y = images[i], .x = w.packed[i]});
    }
    landed(t.grad(l.x), dy.dtype, l.mask_x, stepped_input(), [&](const Accum& to, const Landing& how) {
      land_after(to, dy.dtype, how, [&](const Accum& at) {
        kernels::linear_dgrad(t.queue(),
                              {.dx = at, .dy = dy, .weights = {images.data(), l.count}, .pack = {}});
      });
    });
  }

  /// Quantizes an operand of a backward product into y, whose rows run along what the product sums.
  void quantize(const Packed& y, const Tensor& x, const Packed& packed_x, bool transpose,
                const Rotation& draw, const std::string& which) const {
    kernels::quantize(t.queue(), {.y = y,
                                  .x = x,
                                  .packed_x = packed_x,
                                  .transpose = transpose,
                                  .rule = spec.gradients->scale,
                                  .rounding = {.kind = spec.gradients->rounding,
                                               .seed = draw.seed,
                                               .stream = draw.stream + stream_of(which),
                                               .step = draw.step},
                                  .rotation = draw});
  }
  Packed operand(int64_t rows, int64_t cols) const {
    return temp_packed(t, spec.gradients->block_format(), rows, cols);
  }
  void multiply(const Accum& to, const Landing& how, const Packed& a, const Packed& b,
                const Tensor& pack) const {
    kernels::BlockMatmul m{
        .y = to, .a = a, .b = {&b, 1}, .pack = pack, .rotation = how.rotation, .mask = how.mask};
    if (kernels::block_matmul_wants_scratch(t.queue(), m)) m.scratch = t.temp(to.tensor.shape, DType::f32);
    kernels::block_matmul(t.queue(), m);
  }

  /// dW_i = dy_i^T x, summed over tokens.
  void weights_packed() const {
    const Rotation draw = draws(" dw", l.scheme->rotated.dw);
    const int64_t tokens = dy.rows();
    const Packed x = operand(l.in(), tokens);
    quantize(x, {}, l.packed_x, true, draw, "x");
    Tensor pack;
    if (const int64_t bytes = kernels::block_pack_bytes(t.queue(), {&x, 1})) {
      pack = t.temp({bytes}, DType::u8);
      kernels::block_pack(t.queue(), {.pack = pack, .b = {&x, 1}});
    }
    each_stack([&](size_t first, size_t last) {
      const Tensor part = dy_of(first, last);
      const Packed g = operand(part.cols(), tokens);
      quantize(g, part, {}, true, draw, l.params[first]->name);
      for (size_t i = first; i < last; ++i)
        weight_gradient(i, [&](const Accum& to, const Landing& how) {
          const int64_t row = outs_before(i) - outs_before(first);
          multiply(to, how, g.row_range(row, row + l.params[i]->shape[0]), x, pack);
        });
    });
  }

  /// dx = sum over i of dy_i W_i, summed over outputs.
  void input_packed() const {
    const Accum dx = t.grad(l.x);
    const OutlierGradients outliers = outlier_gradients(t, dx, dy, l.all(), l.scheme->dx_rows());
    landed(dx, DType::f32, l.mask_x, stepped_input(), [&](const Accum& to, const Landing& how) {
      if (blocks_alone(spec.gradients->block_format())) return stack_input(to, how, 0, l.count);
      land_after(to, DType::f32, how, [&](const Accum& at) {
        each_stack([&](size_t first, size_t last) {
          stack_input({at.tensor, at.add || first > 0}, {}, first, last);
        });
      });
    });
    overwrite_rows(t.queue(), dx, outliers);
  }
  /// What weights [first, last) give of it.
  void stack_input(const Accum& to, const Landing& how, size_t first, size_t last) const {
    const Rotation draw = draws(" dx", l.scheme->rotated.dx);
    const Tensor part = dy_of(first, last);
    const Packed g = operand(part.rows(), part.cols()), weights = operand(l.in(), part.cols());
    quantize(g, part, {}, false, draw, l.params[first]->name);
    for (size_t i = first; i < last; ++i) {
      const int64_t column = outs_before(i) - outs_before(first), end = column + l.params[i]->shape[0];
      quantize(last - first == 1 ? weights : weights.column_range(column, end), {}, w.packed[i], true, draw,
               l.params[i]->name + " w");
      if (QuantizationWatch* watch = t.backward_watch())
        watch->quantized(t.current_layer(), l.params[i]->name, Role::gradients,
                         {.sums = {},
                          .x = dy_of(i, i + 1),
                          .y = last - first == 1 ? g : g.column_range(column, end),
                          .rotation = draw,
                          .rule = spec.gradients->scale});
    }
    multiply(to, how, g, weights, {});
  }

  void run() const {
    const bool packed = spec.gradients.has_value();
    if (any_weight_wanted()) packed ? weights_packed() : weights_dense();
    if (t.needs_grad(l.x) || stepped_input().wanted(t)) packed ? input_packed() : input_dense();
  }
};

}  // namespace

Var quantized_linear(Tape& t, Var x, std::span<Parameter* const> weights, const QuantScheme& scheme) {
  Layer l;
  l.scheme = &scheme;
  l.x = x;
  require(scheme.decided || t.queue().meta(), "quant",
          "{} is to be rotated as a calibration decides, and none did; begin its group at a later step",
          weights[0]->name);
  for (Parameter* p : weights) {
    l.params[l.count] = p;
    if (p->weight_step) l.steps[l.count] = t.leaf(*p->weight_step);
    l.leaves[l.count++] = t.leaf(*p);
  }
  if (weights[0]->input_step) l.input_step = t.leaf(*weights[0]->input_step);
  const Tensor y = forward(t, l);
  if (const int64_t count = scheme.forward_rows()) extract_outlier_rows(t, y, t.value(x), weights, count);
  return t.record("linear", y,
                  {x, l.leaves[0], l.leaves[1], l.leaves[2], l.leaves[3], l.steps[0], l.steps[1], l.steps[2],
                   l.steps[3], l.input_step},
                  [=, &t](Tensor dy) {
                    LinearBackward{t, l, dy}.run();
                  });
}

}  // namespace osprey
