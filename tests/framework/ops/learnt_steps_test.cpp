// Linear layers whose step sizes are learnt.

#include <gtest/gtest.h>

#include <cmath>

#include "framework/ops/linear.h"
#include "framework/ops/quantized_weights.h"
#include "framework/quant/step_sizes.h"
#include "tests/support/refusal.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t rows = 64, in = 96, outs[] = {128, 64};
const char* const names[] = {"layers.0.attn.q.weight", "layers.0.attn.k.weight"};

std::optional<QuantOperandSpec> operand(const char* format, ScaleRule scale = ScaleRule::lsq) {
  if (!*format) return {};
  return QuantOperandSpec{.format = format, .scale = scale};
}

QuantGroupSpec group(const char* weights, const char* activations) {
  QuantGroupSpec g;
  g.weights = operand(weights);
  g.activations = operand(activations);
  g.gradient_mask = QuantGroupSpec::GradientMask::unclipped;
  return g;
}

/// Two weights with one input, and the steps that their group learns.
struct Layer {
  TestBed bed;
  std::unique_ptr<QuantSchemes> schemes;
  std::array<Parameter*, 2> weights{};
  Values x, dy, w[2];
  Tensor input, gradient;

  Layer(const QuantGroupSpec& spec, DType dtype) {
    for (size_t i = 0; i < 2; ++i) weights[i] = &bed.params.add(names[i], 0, {outs[i], in}, {});
    weights[1]->first_of_input = weights[0];
    schemes = std::make_unique<QuantSchemes>(std::span(&spec, 1), bed.params, 5);
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    for (size_t i = 0; i < 2; ++i)
      write(weights[i]->value, random_values(names[i], outs[i] * in, dtype, 0.1));
    schemes->activate(0);
    input = make(bed.inputs, {rows, in}, dtype, random_values("x", rows * in, dtype));
    gradient = make(bed.inputs, {rows, outs[0] + outs[1]}, dtype,
                    random_values("dy", rows * (outs[0] + outs[1]), dtype));
    x = osprey::test::read(input), dy = osprey::test::read(gradient);
    for (size_t i = 0; i < 2; ++i) w[i] = osprey::test::read(weights[i]->value);
    bed.params.begin_step();
  }
  void set(Parameter* step, double first) {
    Values v;
    for (int64_t i = 0; i < step->shape[0]; ++i) v.push_back(first * (1 + static_cast<double>(i % 5) / 8));
    write(step->value, v);
    ++step->version;
  }
  /// Runs it; returns y.
  Values run() {
    const Var v = bed.tape.source(input), y = linear(bed.tape, v, weights);
    const Values result = osprey::test::read(bed.tape.value(y));
    bed.tape.backward_from(y, gradient);
    dx = osprey::test::read(bed.tape.gradient_of(v));
    bed.tape.reset();
    bed.arena.check_guards();
    return result;
  }
  Values dx;
};

/// An operand in double: what it becomes, what a gradient of that is multiplied by on its way back, and on
/// its way to the step.
struct Operand {
  Values y, kept, slope;
  Operand(const Values& x, int64_t cols, const Parameter* step, int most)
      : y(x), kept(x.size(), 1), slope(x.size()) {
    if (!step) return;
    const Values s = osprey::test::read(step->value);
    for (size_t i = 0; i < x.size(); ++i) {
      const double size = s[s.size() > 1 ? i / static_cast<size_t>(cols) : 0], v = x[i] / size;
      const double q = std::clamp(std::nearbyint(v), -static_cast<double>(most), static_cast<double>(most));
      kept[i] = std::abs(v) <= most;
      y[i] = q * size;
      slope[i] = q - kept[i] * v;
    }
  }
  Values gradient_of(const Parameter& step, const Values& dy, int64_t cols, int most, int64_t shared) const {
    Values sums(static_cast<size_t>(step.shape[0]));
    for (size_t i = 0; i < dy.size(); ++i)
      sums[sums.size() > 1 ? i / static_cast<size_t>(cols) : 0] += dy[i] * slope[i];
    for (double& s : sums) s /= std::sqrt(static_cast<double>(shared * most));
    return sums;
  }
};

int most_of(const std::optional<QuantOperandSpec>& o) { return o && o->format.starts_with("int8") ? 127 : 7; }

void expect_the_gradients_of_the_paper(const QuantGroupSpec& spec, double near) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name(dtype));
    Layer l(spec, dtype);
    const double fine = most_of(spec.weights) == 7 ? 0.03 : 0.002;
    for (Parameter* p : l.weights)
      if (p->weight_step) l.set(p->weight_step, fine);
    if (l.weights[0]->input_step)
      l.set(l.weights[0]->input_step, most_of(spec.activations) == 7 ? 0.3 : 0.015);
    const Values y = l.run();

    const Operand x(l.x, in, l.weights[0]->input_step, most_of(spec.activations));
    const int64_t all = outs[0] + outs[1];
    Values want_y(static_cast<size_t>(rows * all)), dx(static_cast<size_t>(rows * in));
    int64_t column = 0;
    const double tolerance = dtype == DType::bf16 ? std::max(near, 0.03) : near;
    for (size_t o = 0; o < 2; ++o) {
      const Parameter& p = *l.weights[o];
      const Operand w(l.w[o], in, p.weight_step, most_of(spec.weights));
      Values dw(w.y.size());
      for (int64_t n = 0; n < rows; ++n)
        for (int64_t j = 0; j < outs[o]; ++j)
          for (int64_t k = 0; k < in; ++k) {
            const auto at = static_cast<size_t>(n * all + column + j), a = static_cast<size_t>(n * in + k),
                       b = static_cast<size_t>(j * in + k);
            want_y[at] += x.y[a] * w.y[b];
            dw[b] += l.dy[at] * x.y[a];
            dx[a] += l.dy[at] * w.y[b];
          }
      if (p.weight_step) {
        const int64_t shared = p.weight_step->shape[0] > 1 ? in : outs[o] * in;
        EXPECT_LT(relative_error(osprey::test::read(p.weight_step->grad),
                                 w.gradient_of(*p.weight_step, dw, in, most_of(spec.weights), shared)),
                  tolerance);
      }
      for (size_t i = 0; i < dw.size(); ++i) dw[i] *= w.kept[i];
      EXPECT_LT(relative_error(osprey::test::read(p.grad), dw), tolerance);
      column += outs[o];
    }
    EXPECT_LT(relative_error(y, want_y), std::min(tolerance, 0.03));
    if (const Parameter* step = l.weights[0]->input_step) {
      EXPECT_LT(relative_error(osprey::test::read(step->grad),
                               x.gradient_of(*step, dx, in, most_of(spec.activations), in)),
                tolerance);
    }
    for (size_t i = 0; i < dx.size(); ++i) dx[i] *= x.kept[i];
    EXPECT_LT(relative_error(l.dx, dx), tolerance);
  }
}

}  // namespace

TEST(LearntSteps, HaveTheGradientsOfThePaper) {
  for (const auto& [weights, activations] : {std::pair{"int4_tensor", "int4_tensor"},
                                             {"int4_row", "int8_tensor"},
                                             {"int8_row", ""},
                                             {"int8_tensor", "int8_tensor"},
                                             {"", "int4_tensor"}}) {
    SCOPED_TRACE(fmt::format("{} {}", weights, activations));
    expect_the_gradients_of_the_paper(group(weights, activations), 1e-4);
  }
}

TEST(LearntSteps, LearnBesideQuantizedGradients) {
  QuantGroupSpec g = group("int4_tensor", "int4_tensor");
  g.gradients = operand("mxint8", ScaleRule::even);
  expect_the_gradients_of_the_paper(g, 0.05);
}

TEST(LearntSteps, AreParametersBesideTheirWeights) {
  const QuantGroupSpec g = group("int4_row", "int4_tensor");
  Layer l(g, DType::f32);
  EXPECT_EQ(l.weights[0]->weight_step->name, "layers.0.attn.q.weight_step");
  EXPECT_EQ(l.weights[1]->weight_step->shape, (Shape{outs[1]}));
  EXPECT_EQ(l.weights[0]->input_step->name, "layers.0.attn.q.input_step");
  EXPECT_EQ(l.weights[0]->input_step->layer, 0);
  EXPECT_EQ(l.weights[1]->input_step, nullptr) << "one input, one step";
  EXPECT_EQ(l.bed.params.all().size(), 5u);
}

TEST(LearntSteps, ADifferentStepIsSeenWithoutADifferentWeight) {
  Layer l(group("int4_tensor", "int4_tensor"), DType::f32);
  for (Parameter* p : l.weights) l.set(p->weight_step, 0.03);
  l.set(l.weights[0]->input_step, 0.3);
  const Values first = l.run();
  l.set(l.weights[1]->weight_step, 0.04);
  EXPECT_NE(l.run(), first);
}

TEST(LearntSteps, LearnWhereWeightsAreFrozen) {
  const QuantGroupSpec g = group("int4_tensor", "int4_tensor");
  Layer all(g, DType::f32), frozen(g, DType::f32);
  for (Layer* l : {&all, &frozen}) {
    for (Parameter* p : l->weights) l->set(p->weight_step, 0.03);
    l->set(l->weights[0]->input_step, 0.3);
  }
  for (Parameter* p : frozen.weights) p->trainable = false;
  all.run();
  frozen.run();
  EXPECT_FALSE(frozen.weights[0]->grad_written);
  for (size_t i = 0; i < 2; ++i)
    EXPECT_EQ(read(frozen.weights[i]->weight_step->grad), read(all.weights[i]->weight_step->grad));
}

TEST(LearntSteps, AreDeclaredBeforeThereIsMemory) {
  TestBed bed;
  bed.params.add(names[0], 0, {64, 64}, {});
  bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::on);
  const QuantGroupSpec g = group("int4_tensor", "");
  EXPECT_NE(refusal([&] {
              QuantSchemes schemes(std::span(&g, 1), bed.params, 1);
            }).find("layers.0.attn.q.weight_step is declared after memory was taken"),
            std::string::npos);
}
