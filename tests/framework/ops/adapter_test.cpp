#include "framework/ops/adapter.h"

#include <gtest/gtest.h>

#include <array>

#include "framework/ops/linear.h"
#include "tests/support/test_bed.h"

namespace osprey {
namespace {

using test::make;
using test::random_values;
using test::read;
using test::relative_error;
using test::TestBed;
using test::Values;
using test::write;

constexpr size_t tokens = 7, in = 12, rank = 3;
constexpr std::array<size_t, 2> outs = {10, 6};
constexpr double scale = 0.5;

/// a (n, k) times b (k, m).
Values product(const Values& a, const Values& b, size_t n, size_t k, size_t m) {
  Values c(n * m);
  for (size_t i = 0; i < n; ++i)
    for (size_t l = 0; l < k; ++l)
      for (size_t j = 0; j < m; ++j) c[i * m + j] += a[i * k + l] * b[l * m + j];
  return c;
}

Values transposed(const Values& a, size_t rows, size_t cols) {
  Values t(a.size());
  for (size_t i = 0; i < rows; ++i)
    for (size_t j = 0; j < cols; ++j) t[j * rows + i] = a[i * cols + j];
  return t;
}

Values columns(const Values& a, size_t rows, size_t begin, size_t end) {
  const size_t cols = a.size() / rows;
  Values part;
  for (size_t i = 0; i < rows; ++i)
    part.insert(part.end(), a.begin() + static_cast<int64_t>(i * cols + begin),
                a.begin() + static_cast<int64_t>(i * cols + end));
  return part;
}

/// Two stacked weights, of which the second or both have an adapter.
struct Layer {
  TestBed bed;
  std::array<Parameter*, 2> weights{}, a{}, b{};
  std::array<Values, 2> w_values, a_values, b_values;
  Values x_values = random_values("x", tokens* in, DType::f32);
  Values dy_values = random_values("dy", tokens*(outs[0] + outs[1]), DType::f32);

  Layer(DType dtype, bool both) {
    for (size_t i = 0; i < 2; ++i) {
      const std::string name = i == 0 ? "q" : "k";
      weights[i] = &bed.params.add(name, 0, {static_cast<int64_t>(outs[i]), in}, {});
      weights[i]->trainable = false;
      if (i == 0 && !both) continue;
      a[i] = &bed.params.add(name + ".a", 0, {rank, in}, {});
      b[i] = &bed.params.add(name + ".b", 0, {static_cast<int64_t>(outs[i]), rank}, {});
      weights[i]->adapter =
          std::make_shared<LowRankAdapter>(LowRankAdapter{a[i], b[i], static_cast<float>(scale)});
    }
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    for (size_t i = 0; i < 2; ++i) {
      const auto fill = [&](Parameter* p, Values& v) {
        if (p) write(p->value, v = random_values(p->name, p->shape.numel(), dtype));
      };
      fill(weights[i], w_values[i]);
      fill(a[i], a_values[i]);
      fill(b[i], b_values[i]);
    }
  }
  /// W + scale b a.
  Values merged(size_t i) const {
    Values w = w_values[i];
    if (!a[i]) return w;
    const Values ba = product(b_values[i], a_values[i], outs[i], rank, in);
    for (size_t j = 0; j < w.size(); ++j) w[j] += scale * ba[j];
    return w;
  }
};

TEST(AdapterOp, IsTheProductWithMergedWeightsForwardAndBackward) {
  for (const bool both : {false, true}) {
    Layer l(DType::f32, both);
    Tape& t = l.bed.tape;
    l.bed.params.begin_step();
    const Var x = t.source(make(l.bed.inputs, {tokens, in}, DType::f32, l.x_values));
    const Var y = linear(t, x, l.weights);
    Values expected_dx(tokens * in);
    for (size_t i = 0, begin = 0; i < 2; begin += outs[i++]) {
      const Values w = l.merged(i);
      EXPECT_LT(relative_error(columns(read(t.value(y)), tokens, begin, begin + outs[i]),
                               product(l.x_values, transposed(w, outs[i], in), tokens, in, outs[i])),
                1e-5);
      const Values dx = product(columns(l.dy_values, tokens, begin, begin + outs[i]), w, tokens, outs[i], in);
      for (size_t j = 0; j < dx.size(); ++j) expected_dx[j] += dx[j];
    }
    t.backward_from(y, make(l.bed.inputs, {tokens, outs[0] + outs[1]}, DType::f32, l.dy_values));
    EXPECT_LT(relative_error(read(t.gradient_of(x)), expected_dx), 1e-5);
    for (size_t i = 0, begin = 0; i < 2; begin += outs[i++]) {
      EXPECT_FALSE(l.weights[i]->grad.defined());
      if (!l.a[i]) continue;
      // With the gradient D of the merged weight: scale D a^T for b, scale b^T D for a.
      const Values dy = columns(l.dy_values, tokens, begin, begin + outs[i]);
      const Values d = product(transposed(dy, tokens, outs[i]), l.x_values, outs[i], tokens, in);
      Values db = product(d, transposed(l.a_values[i], rank, in), outs[i], in, rank),
             da = product(transposed(l.b_values[i], outs[i], rank), d, rank, outs[i], in);
      for (double& v : db) v *= scale;
      for (double& v : da) v *= scale;
      EXPECT_LT(relative_error(read(l.b[i]->grad), db), 1e-5);
      EXPECT_LT(relative_error(read(l.a[i]->grad), da), 1e-5);
    }
    t.reset();
    l.bed.arena.check_guards();
  }
}

TEST(AdapterOp, InBf16ItIsNearTheMergedProduct) {
  Layer l(DType::bf16, true);
  const Values x = random_values("x", tokens * in, DType::bf16);
  const Values y = read(l.bed.tape.value(
      linear(l.bed.tape, l.bed.tape.input(make(l.bed.inputs, {tokens, in}, DType::bf16, x)), l.weights)));
  for (size_t i = 0, begin = 0; i < 2; begin += outs[i++])
    EXPECT_LT(relative_error(columns(y, tokens, begin, begin + outs[i]),
                             product(x, transposed(l.merged(i), outs[i], in), tokens, in, outs[i])),
              2e-2);
}

/// A weight whose rows have lengths of their own (DoRA), on given numbers.
struct Dora {
  TestBed bed;
  Parameter *w, *a, *b, *m;
  Var x;
  Values y;  // backward gives its memory back

  /// Values of w (out, in), a (rank, in), b (out, rank), m (out), x (N, in) and dy (N, out).
  Dora(int64_t out, int64_t width, int64_t r, float s, DType dtype, const std::array<Values, 6>& v) {
    w = &bed.params.add("w", 0, {out, width}, {});
    w->trainable = false;
    a = &bed.params.add("a", 0, {r, width}, {});
    b = &bed.params.add("b", 0, {out, r}, {});
    m = &bed.params.add("m", 0, {out}, {});
    w->adapter = std::make_shared<LowRankAdapter>(LowRankAdapter{a, b, s, m});
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    write(w->value, v[0]), write(a->value, v[1]), write(b->value, v[2]), write(m->value, v[3]);
    bed.params.begin_step();
    const int64_t n = static_cast<int64_t>(v[4].size()) / width;
    x = bed.tape.source(make(bed.inputs, {n, width}, dtype, v[4]));
    const Var output = linear(bed.tape, x, *w);
    y = read(bed.tape.value(output));
    bed.tape.backward_from(output, make(bed.inputs, {n, out}, dtype, v[5]));
  }
};

TEST(AdapterOp, WithMagnitudesItIsWhatPeftComputes) {
  // PEFT 0.15.2 in fp64, LoraConfig(r=2, lora_alpha=3, use_dora=True), with row lengths that are the weight's
  // plus those below.
  const std::array<Values, 6> v = {
      Values{0.625, -0.75, 0.75, 0.6875, -0.6875, 0.875, -0.8125, 0.4375, 0.25, -0.0625, 0.0, -1.0},
      Values{0.375, -0.6875, 0.4375, 0.75, 0.1875, -0.875, -1.0, -0.3125},
      Values{1.0, 0.9375, -0.5, -0.6875, 0.375, 0.1875},
      Values{0.25, -0.5, 0.125},
      Values{0.125, 0.8125, 0.8125, -0.875, 0.25, -0.3125, -0.75, -0.875, -0.3125, -0.5625, 0.125, -0.0625},
      Values{0.0, -0.6875, 0.8125, 0.0625, 0.0, 0.6875, 0.6875, -1.0, -0.375}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Dora d(3, 4, 2, 1.5f, dtype, v);
    const double tolerance = dtype == DType::f32 ? 2e-6 : 2e-2;
    const auto near = [&](const Values& found, const Values& wanted, const char* what) {
      EXPECT_LT(relative_error(found, wanted), tolerance) << what << " " << name(dtype);
    };
    near(d.y,
         {-1.592522, 0.5336595, 0.05669004, 0.04709946, -0.4022352, 1.012396, 0.5304296, -0.3490929,
          0.2839679},
         "y");
    near(read(d.bed.tape.gradient_of(d.x)),
         {0.7352934, -1.176675, -0.002731199, -0.623458, 0.4160996, -0.5933063, -0.025627, -0.4460716,
          0.6798811, -1.514868, 0.05405874, 0.6261199},
         "dx");
    near(read(d.a->grad),
         {0.03344375, 0.1104153, 0.2730339, -1.018604, -0.0978142, -0.06819034, 0.312684, -0.6984344}, "da");
    near(read(d.b->grad), {0.1022731, 0.2132933, 0.1545957, 0.2831571, -1.954253, -0.3114069}, "db");
    near(read(d.m->grad), {0.2214457, -0.0188213, 0.5490298}, "dm");
    d.bed.tape.reset();
    d.bed.arena.check_guards();
  }
}

TEST(AdapterOp, WithMagnitudesOfNothingItBeginsAsTheWeightBitForBit) {
  constexpr int64_t out = 40, width = 24, n = 5;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::array<Values, 6> v = {random_values("w", out * width, dtype),
                                     random_values("a", 4 * width, dtype),
                                     Values(out * 4),
                                     Values(out),
                                     random_values("x", n * width, dtype),
                                     random_values("dy", n * out, dtype)};
    Dora d(out, width, 4, 2.0f, dtype, v);
    const Values adapted = d.y;
    d.bed.tape.reset();
    d.w->adapter = nullptr;
    const Var y = linear(d.bed.tape, d.bed.tape.input(make(d.bed.inputs, {n, width}, dtype, v[4])), *d.w);
    EXPECT_EQ(adapted, read(d.bed.tape.value(y))) << name(dtype);
  }
}

/// Sets a basis that it was given, and keeps the gradient it was shown.
struct GivenBasis final : BasisSource {
  bool wants_gradient() const override { return true; }
  void refresh(const Queue&, Parameter& p, const Tensor& gradient) override {
    seen = read(gradient);
    write(p.subspace->basis, basis);
  }
  Values basis, seen;
};

TEST(SubspaceGradient, IsTheGradientProjectedAndAddsUpOverMicroSteps) {
  const std::pair<size_t, size_t> shapes[] = {{10, 12}, {14, 12}};
  for (const auto& [out, width] : shapes) {
    TestBed bed;
    Parameter& w = bed.params.add("w", 0, {static_cast<int64_t>(out), static_cast<int64_t>(width)}, {});
    w.subspace = std::make_shared<Subspace>();
    w.subspace->side = Subspace::smaller_side(w.shape);
    w.subspace->rank = rank;
    bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::on);
    write(w.value, random_values("w", w.shape.numel(), DType::f32));
    const Shape shape = w.subspace->basis_shape(w.shape);
    w.subspace->basis = bed.inputs.alloc(shape, DType::f32);
    GivenBasis source;
    source.basis = random_values("basis", shape.numel(), DType::f32);
    w.subspace->refresh = &source;
    const bool left = w.subspace->side == Subspace::Side::left;
    EXPECT_EQ(left, out < width);
    bed.params.begin_step();
    Values whole(out * width);
    for (int micro = 0; micro < 2; ++micro) {
      const Values x = random_values(fmt::format("x{}", micro), static_cast<int64_t>(tokens * width),
                                     DType::f32),
                   dy = random_values(fmt::format("dy{}", micro), static_cast<int64_t>(tokens * out),
                                      DType::f32);
      const Values d = product(transposed(dy, tokens, out), x, out, tokens, width);
      for (size_t i = 0; i < d.size(); ++i) whole[i] += d[i];
      const Var y =
          linear(bed.tape,
                 bed.tape.input(make(bed.inputs, {tokens, static_cast<int64_t>(width)}, DType::f32, x)), w);
      bed.tape.backward_from(y, make(bed.inputs, {tokens, static_cast<int64_t>(out)}, DType::f32, dy));
      bed.tape.reset();
      EXPECT_TRUE(micro > 0 || relative_error(source.seen, whole) < 1e-5);
    }
    const Values expected = left ? product(source.basis, whole, rank, out, width)
                                 : product(whole, transposed(source.basis, rank, width), out, width, rank);
    EXPECT_LT(relative_error(read(w.grad), expected), 1e-5);
    bed.arena.check_guards();
  }
}

}  // namespace
}  // namespace osprey
