#include "framework/ops/quantized_linear.h"

#include <gtest/gtest.h>

#include "framework/ops/linear.h"
#include "framework/ops/quantized_weights.h"
#include "tests/support/refusal.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

using Preset = QuantGroupSpec::Preset;
using Mask = QuantGroupSpec::GradientMask;
using Kind = kernels::Rounding::Kind;
constexpr int64_t rows = 128, in = 128, outs[] = {256, 128};
constexpr uint64_t seed = 5;

QuantOperandSpec operand(const std::string& format, ScaleRule scale = ScaleRule::even) {
  return {.format = format, .scale = scale};
}

QuantGroupSpec group(std::optional<QuantOperandSpec> weights, std::optional<QuantOperandSpec> activations,
                     std::optional<QuantOperandSpec> gradients = {}) {
  QuantGroupSpec g;
  g.weights = std::move(weights);
  g.activations = std::move(activations);
  g.gradients = std::move(gradients);
  return g;
}

struct Result {
  Values y, dx;
  std::array<Values, 2> dw;
};

/// A layer of two stacked weights, run once forward and backward.
struct Layer {
  TestBed bed;
  std::unique_ptr<QuantSchemes> schemes;
  std::array<Parameter*, 2> weights{};
  Tensor x, dy;
  DType dtype;

  explicit Layer(const QuantGroupSpec& spec, DType dtype_, int threads = 2) : bed(threads), dtype(dtype_) {
    const char* names[] = {"layers.0.attn.q.weight", "layers.0.attn.k.weight"};
    for (size_t i = 0; i < 2; ++i) weights[i] = &bed.params.add(names[i], 0, {outs[i], in}, {});
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    for (size_t i = 0; i < 2; ++i)
      write(weights[i]->value, random_values(names[i], outs[i] * in, dtype, 0.1));
    schemes = std::make_unique<QuantSchemes>(std::span(&spec, 1), bed.params, seed);
    schemes->activate(0);
    Values values = random_values("x", rows * in, dtype);
    for (size_t i = 0; i < values.size(); i += 97) values[i] *= 16;  // outliers: what masks are for
    x = make(bed.inputs, {rows, in}, dtype, values);
    dy = make(bed.inputs, {rows, outs[0] + outs[1]}, dtype,
              random_values("dy", rows * (outs[0] + outs[1]), dtype));
    bed.params.begin_step();
  }
  Result run(int backwards = 1) {
    Result r;
    for (int i = 0; i < backwards; ++i) {
      const Var vx = bed.tape.source(x), y = linear(bed.tape, vx, weights);
      r.y = read(bed.tape.value(y));
      bed.tape.backward_from(y, dy);
      r.dx = read(bed.tape.gradient_of(vx));
      bed.tape.reset();
    }
    for (size_t i = 0; i < 2; ++i)
      if (weights[i]->grad_written) r.dw[i] = read(weights[i]->grad);
    bed.arena.check_guards();
    bed.inputs.check_guards();
    return r;
  }
};

/// (rows of a) x (rows of b): a b^T in double.
Values product(const Values& a, const Values& b, int64_t k) {
  const size_t m = a.size() / static_cast<size_t>(k), n = b.size() / static_cast<size_t>(k);
  Values y(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j)
      for (size_t e = 0; e < static_cast<size_t>(k); ++e)
        y[i * n + j] += a[i * static_cast<size_t>(k) + e] * b[j * static_cast<size_t>(k) + e];
  return y;
}
Values transposed(const Values& x, int64_t cols) {
  const size_t c = static_cast<size_t>(cols), r = x.size() / c;
  Values y(x.size());
  for (size_t i = 0; i < r; ++i)
    for (size_t j = 0; j < c; ++j) y[j * r + i] = x[i * c + j];
  return y;
}
Values columns(const Values& x, int64_t cols, int64_t begin, int64_t end) {
  Values y;
  for (size_t r = 0; r < x.size() / static_cast<size_t>(cols); ++r)
    y.insert(y.end(), x.begin() + static_cast<int64_t>(r) * cols + begin,
             x.begin() + static_cast<int64_t>(r) * cols + end);
  return y;
}

/// What a layer should give, from its operands as the kernels quantize them, multiplied in double. Backward
/// quantizes to nearest and without a rotation here, so that it is a function of its operands alone.
struct Expected {
  Layer& layer;
  const QuantGroupSpec& spec;
  TestBed room;

  struct Operand {
    Values values;     // in the rotated basis
    Tensor mask = {};  // on the device
    Packed packed = {};
  };
  Operand quantized(const Tensor& t, const std::optional<QuantOperandSpec>& o) {
    if (!o) return {read(t)};
    Operand result;
    const auto alloc = [&](const Shape& s, DType d) { return room.inputs.alloc(s, d); };
    result.packed = make_packed(o->block_format(), t.rows(), t.cols(), alloc);
    if (spec.gradient_mask == Mask::unclipped) result.mask = alloc({t.rows(), t.cols() / 8}, DType::u8);
    kernels::quantize(room.queue, {.y = result.packed,
                                   .x = t,
                                   .rule = o->scale,
                                   .rotation = forward_rotation(*layer.weights[0]->scheme),
                                   .mask = result.mask});
    result.values = values_of(result.packed);
    return result;
  }
  Values values_of(const Packed& p) {
    const Tensor t = room.inputs.alloc({p.rows, p.cols}, DType::f32);
    kernels::dequantize(room.queue, {.y = t, .x = p});
    return read(t);
  }
  /// The operand of a backward product whose rows run along what it sums.
  Values again(const Operand& o, const Tensor& t, bool transpose) {
    if (!spec.gradients) return transpose ? transposed(o.values, t.cols()) : o.values;
    const QuantOperandSpec& g = *spec.gradients;
    const auto alloc = [&](const Shape& s, DType d) { return room.inputs.alloc(s, d); };
    const Packed y = make_packed(g.block_format(), transpose ? t.cols() : t.rows(),
                                 transpose ? t.rows() : t.cols(), alloc);
    kernels::Quantize args{.y = y, .transpose = transpose, .rule = g.scale};
    (o.packed.defined() ? args.packed_x = o.packed, void() : void(args.x = t));
    kernels::quantize(room.queue, args);
    return values_of(y);
  }
  Values unrotated(const Values& v, const Shape& shape, const Tensor& mask) {
    const Tensor from = make(room.inputs, shape, DType::f32, v), to = room.inputs.alloc(shape, DType::f32);
    kernels::unrotate(
        room.queue,
        {.y = {to}, .x = from, .mask = mask, .rotation = forward_rotation(*layer.weights[0]->scheme)});
    return read(to);
  }

  Result run() {
    Result r;
    const Operand x = quantized(layer.x, spec.activations);
    const Values dy = read(layer.dy);
    Values dx(static_cast<size_t>(rows * in));
    int64_t column = 0;
    const int64_t all = outs[0] + outs[1];
    r.y.resize(static_cast<size_t>(rows * all));
    for (size_t i = 0; i < 2; ++i) {
      const Tensor& value = layer.weights[i]->value;
      const Operand w = quantized(value, spec.weights);
      const Values y = product(x.values, w.values, in);
      for (int64_t n = 0; n < rows; ++n)
        std::copy_n(y.begin() + n * outs[i], outs[i], r.y.begin() + n * all + column);
      const Tensor part =
          make(room.inputs, {rows, outs[i]}, layer.dtype, columns(dy, all, column, column + outs[i]));
      const Operand g{read(part)};
      const Values dx_i = product(again(g, part, false), again(w, value, true), outs[i]);
      for (size_t e = 0; e < dx.size(); ++e) dx[e] += dx_i[e];
      r.dw[i] =
          unrotated(product(again(g, part, true), again(x, layer.x, true), rows), {outs[i], in}, w.mask);
      column += outs[i];
    }
    r.dx = unrotated(dx, {rows, in}, x.mask);
    return r;
  }
};

void expect_products_of_quantized_operands(const QuantGroupSpec& spec) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Layer layer(spec, dtype);
    const Result got = layer.run(), expected = Expected{layer, spec, TestBed()}.run();
    const double near = dtype == DType::f32 ? 1e-5 : 1.5e-2;
    EXPECT_LT(relative_error(got.y, expected.y), near) << name(dtype);
    EXPECT_LT(relative_error(got.dx, expected.dx), near) << name(dtype);
    for (size_t i = 0; i < 2; ++i)
      EXPECT_LT(relative_error(got.dw[i], expected.dw[i]), near) << name(dtype) << " weight " << i;
  }
}

QuantGroupSpec quartet() {
  QuantGroupSpec g =
      group(operand("mxfp4", ScaleRule::mse), operand("mxfp4", ScaleRule::mse),
            QuantOperandSpec{.format = "mxfp4", .scale = ScaleRule::rceil, .rounding = Kind::stochastic});
  g.rotation = g.backward_rotation = 32;
  return g;
}

}  // namespace

TEST(QuantizedLinear, MultipliesWhatItsOperandsBecomeInEveryFormatAndRole) {
  // A GPU played on the CPU is slow: one format of each kind of scale there. Its kernels are tested with all.
  const bool all = test_device().kind == DeviceKind::cpu;
  for (const NamedFormat& f : block_formats()) {
    if (!all && f.name != "mxfp4" && f.name != "nvfp4" && f.name != "int8_row") continue;
    const QuantOperandSpec o = operand(std::string(f.name));
    SCOPED_TRACE(f.name);
    expect_products_of_quantized_operands(group(o, o));
    expect_products_of_quantized_operands(group(o, {}));
    expect_products_of_quantized_operands(group({}, o));
    expect_products_of_quantized_operands(group(o, o, o));
  }
}

TEST(QuantizedLinear, MixesFormats) {
  expect_products_of_quantized_operands(group(operand("mxfp4"), operand("mxint8")));
  expect_products_of_quantized_operands(group(operand("mxfp4"), operand("mxint8"), operand("mxint8")));
  expect_products_of_quantized_operands(group(operand("mxfp4"), operand("int8_row")));
  QuantGroupSpec stats = group(operand("int4_row", ScaleRule::stats), operand("int8_row", ScaleRule::stats));
  expect_products_of_quantized_operands(stats);
  stats.gradient_mask = Mask::unclipped;
  expect_products_of_quantized_operands(stats);
}

TEST(QuantizedLinear, TurnsBothOperandsAndItsGradientsBack) {
  const bool all = test_device().kind == DeviceKind::cpu;
  for (int64_t size : all ? std::vector<int64_t>{16, 32, 64, 128} : std::vector<int64_t>{32})
    for (Mask mask : {Mask::straight_through, Mask::unclipped}) {
      SCOPED_TRACE(size);
      QuantGroupSpec g = group(operand("mxfp4", ScaleRule::mse), operand("mxfp4", ScaleRule::mse));
      g.rotation = size;
      g.gradient_mask = mask;
      expect_products_of_quantized_operands(g);
      g.gradients = operand("mxfp8_e4m3");
      expect_products_of_quantized_operands(g);
    }
}

TEST(QuantizedLinear, MasksGradientsOfClippedValuesWithoutARotationToo) {
  QuantGroupSpec g = group(operand("mxfp4", ScaleRule::mse), operand("mxfp4", ScaleRule::mse));
  g.gradient_mask = Mask::unclipped;
  expect_products_of_quantized_operands(g);
  Layer masked(g, DType::f32);
  const Values dx = masked.run().dx;
  EXPECT_GT(std::count(dx.begin(), dx.end(), 0.0), 10);
}

TEST(QuantizedLinear, GradientsAddUpAndFrozenWeightsGetNone) {
  const QuantGroupSpec g = group(operand("mxfp4"), operand("mxfp4"), operand("mxfp4"));
  Layer once(g, DType::f32), twice(g, DType::f32), frozen(g, DType::f32);
  const Result one = once.run();
  Values doubled = one.dw[1];
  for (double& v : doubled) v *= 2;
  EXPECT_EQ(twice.run(2).dw[1], doubled);
  frozen.weights[0]->trainable = false;
  const Result part = frozen.run();
  EXPECT_TRUE(part.dw[0].empty());
  EXPECT_EQ(part.dw[1], one.dw[1]);
  EXPECT_EQ(part.dx, one.dx);
}

TEST(QuantizedLinear, ThreadsDoNotChangeABit) {
  Layer one(quartet(), DType::bf16, 1), three(quartet(), DType::bf16, 3);
  const Result a = one.run(), b = three.run();
  EXPECT_EQ(a.y, b.y);
  EXPECT_EQ(a.dx, b.dx);
  EXPECT_EQ(a.dw, b.dw);
}

TEST(QuantizedLinear, DrawsAreFunctionsOfTheStepAndTheMicroBatch) {
  Layer layer(quartet(), DType::f32);
  const Tensor step = layer.bed.zeros(1);
  const auto dw = [&](double at, int64_t micro_batch) {
    write(step, {at});
    layer.bed.tape.set_draw_index({.step = step, .micro_batch = micro_batch});
    layer.bed.params.begin_step();
    return layer.run().dw[0];
  };
  const Values first = dw(0, 0);
  EXPECT_NE(dw(1, 0), first);
  EXPECT_NE(dw(0, 1), first);
  EXPECT_NE(dw(0, 1), dw(1, 0));
  EXPECT_EQ(dw(0, 0), first);
}

/// Quantizes what it is shown once more, with the rotation that it is told.
struct Again final : QuantizationWatch {
  TestBed room;
  std::string calls;
  bool this_step_only() const override { return false; }
  void quantized(int, const std::string& weight, Role role,
                 const kernels::MeasureQuantization& what) override {
    calls += fmt::format("{} {}, ", static_cast<int>(role), weight.substr(14, 1));
    const auto alloc = [&](const Shape& s, DType d) { return room.inputs.alloc(s, d); };
    const Packed again = make_packed(what.y.format, what.y.rows, what.y.cols, alloc);
    kernels::quantize(room.queue, {.y = again, .x = what.x, .rotation = what.rotation});
    const auto values = [&](const Packed& p) {
      const Tensor t = room.inputs.alloc({p.rows, p.cols}, DType::f32);
      kernels::dequantize(room.queue, {.y = t, .x = p});
      return read(t);
    };
    EXPECT_EQ(values(again), values(what.y)) << calls;
  }
};

TEST(QuantizedLinear, ShowsWhoeverWatchesWhatItQuantizedAndHow) {
  QuantGroupSpec g = group(operand("mxfp4"), operand("mxfp4"), operand("mxfp4"));
  g.rotation = 32;
  g.backward_rotation = 64;
  Layer layer(g, DType::bf16);
  const Tensor step = layer.bed.zeros(1);
  write(step, {3});
  layer.bed.tape.set_draw_index({.step = step, .micro_batch = 1});
  Again watch;
  layer.bed.tape.set_quantization_watch(&watch);
  layer.run(2);
  EXPECT_EQ(watch.calls, "0 q, 0 k, 1 q, 2 q, 2 k, 0 q, 0 k, 1 q, 2 q, 2 k, ") << "in each micro batch";
}

TEST(QuantizedLinear, ShowsOnlyWhatHasAFormat) {
  Layer layer(group(operand("int4_g64"), {}), DType::f32);
  Again watch;
  layer.bed.tape.set_quantization_watch(&watch);
  layer.run();
  EXPECT_EQ(watch.calls, "0 q, 0 k, ");
}

TEST(QuantizedLinear, StochasticGradientsAreRightOnAverage) {
  // Only the gradients are quantized coarsely, so the mean over many draws is the plain gradient of the
  // quantized operands.
  QuantGroupSpec coarse = quartet(), fine = quartet();
  fine.gradients = {};
  fine.backward_rotation = 0;
  Layer drawn(coarse, DType::f32), plain(fine, DType::f32);
  const Result exact = plain.run();
  const Tensor step = drawn.bed.zeros(1);
  const int draws = test_device().kind == DeviceKind::cpu ? 400 : 40;
  Values mean(exact.dw[0].size()), mean_dx(exact.dx.size());
  double single = 0;
  for (int i = 0; i < draws; ++i) {
    write(step, {static_cast<double>(i)});
    drawn.bed.tape.set_draw_index({.step = step, .micro_batch = 0});
    drawn.bed.params.begin_step();
    const Result r = drawn.run();
    for (size_t e = 0; e < mean.size(); ++e) mean[e] += r.dw[0][e] / draws;
    for (size_t e = 0; e < mean_dx.size(); ++e) mean_dx[e] += r.dx[e] / draws;
    if (i == 0) single = relative_error(r.dw[0], exact.dw[0]);
  }
  EXPECT_GT(single, 0.05);
  EXPECT_LT(relative_error(mean, exact.dw[0]), single * 3 / std::sqrt(draws));
  EXPECT_LT(relative_error(mean_dx, exact.dx), single * 3 / std::sqrt(draws));
}

TEST(QuantizedLinear, SeesAWeightThatWasWritten) {
  Layer layer(group(operand("mxfp4"), operand("mxfp4")), DType::f32);
  const Values before = layer.run().y;
  Values doubled = read(layer.weights[0]->value);
  for (double& v : doubled) v *= 2;
  write(layer.weights[0]->value, doubled);
  ++layer.weights[0]->version;
  const Values after = layer.run().y;
  EXPECT_EQ(after[0], 2 * before[0]);
  EXPECT_EQ(after[static_cast<size_t>(outs[0])], before[static_cast<size_t>(outs[0])]);
}

TEST(QuantizedLinear, BooksItsMemoryOnMeta) {
  for (Preset preset : {Preset::quartet, Preset::weight_only}) {
    QuantGroupSpec spec = preset == Preset::quartet ? quartet() : group(operand("mxfp4"), {});
    Layer layer(spec, DType::bf16);
    layer.run();
    ParamStore planned;
    for (const Parameter* p : layer.weights) planned.add(p->name, 0, p->shape, {});
    const Queue meta{.device = {DeviceKind::meta}, .threads = 2, .planned = layer.bed.queue.device.kind};
    planned.materialize(meta.device, DType::bf16, ParamStore::Gradients::on);
    const QuantSchemes schemes(std::span(&spec, 1), planned, seed);
    schemes.activate(0);
    Arena arena("activations", meta.device, 0);
    Pool pool("activation gradients", meta.device);
    Tape tape(meta, arena, pool);
    tape.set_mode(Tape::Mode::train);
    Parameter* both[] = {planned.all()[0].get(), planned.all()[1].get()};
    const Var y = linear(tape, tape.source(make_tensor(nullptr, {rows, in}, DType::bf16, meta.device)), both);
    tape.backward_from(y, make_tensor(nullptr, {rows, outs[0] + outs[1]}, DType::bf16, meta.device));
    EXPECT_EQ(quantized_bytes(planned), quantized_bytes(layer.bed.params));
    EXPECT_GT(quantized_bytes(planned), 0);
  }
}

TEST(QuantizedLinear, WeightsOfOneInputBelongToOneGroup) {
  Layer layer(quartet(), DType::f32);
  layer.weights[1]->scheme = nullptr;
  EXPECT_NE(
      refusal([&] { layer.run(); }).find("layers.0.attn.q.weight and layers.0.attn.k.weight have one input"),
      std::string::npos);
}
