#include "framework/ops/outlier_rows.h"

#include <gtest/gtest.h>

#include <cmath>

#include "framework/ops/linear.h"
#include "framework/ops/pointwise.h"
#include "framework/quant/scheme.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr int64_t rows = 64, in = 96, outs[] = {96, 32}, all = 128;
constexpr const char* names[] = {"layers.0.attn.q.weight", "layers.0.attn.k.weight"};
const std::vector<int64_t> large_x = {3, 40, 63}, large_dy = {0, 17, 40};  // rows
constexpr PatternVotes in_rows = {3, 0, 0}, in_columns = {0, 3, 0}, nowhere = {0, 0, 3};

QuantGroupSpec group(int64_t outlier_rows) {
  QuantGroupSpec g;
  g.weights = g.activations = g.gradients = QuantOperandSpec{};
  g.rotation = g.backward_rotation = 32;
  g.rotate = QuantGroupSpec::Rotate::measured;
  g.calibration_steps = 3;
  g.outlier_rows = outlier_rows;
  return g;
}
LayerPatterns decision(const PatternVotes& x, const PatternVotes& dy,
                       const RotatedProducts& rotated = {true, true, true}) {
  return {.weight = names[0], .x = x, .w = nowhere, .dy = dy, .decided = true, .rotated = rotated};
}

struct Result {
  Values y, dx;
  std::array<Values, 2> dw;
  bool operator==(const Result&) const = default;
};

/// A layer of two stacked weights; few rows of x, and of dy, are 50 times as large as the others.
struct Layer {
  TestBed bed;
  std::unique_ptr<QuantSchemes> schemes;
  std::array<Parameter*, 2> weights{};
  Tensor x, dy;

  explicit Layer(DType dtype, int threads = 2) : bed(threads) {
    for (size_t i = 0; i < 2; ++i) weights[i] = &bed.params.add(names[i], 0, {outs[i], in}, {});
    weights[1]->first_of_input = weights[0];
    bed.params.materialize(bed.queue.device, dtype, ParamStore::Gradients::on);
    for (size_t i = 0; i < 2; ++i)
      write(weights[i]->value, random_values(names[i], outs[i] * in, dtype, 0.1));
    const auto matrix = [&](const char* name, int64_t cols, const std::vector<int64_t>& large) {
      Values v = random_values(name, rows * cols, DType::f32);
      for (int64_t r : large)
        for (int64_t c = 0; c < cols; ++c) v[static_cast<size_t>(r * cols + c)] *= 50;
      return make(bed.inputs, {rows, cols}, dtype, v);
    };
    x = matrix("x", in, large_x);
    dy = matrix("dy", all, large_dy);
  }
  Layer& quantize(const QuantGroupSpec& spec, const LayerPatterns& decided) {
    schemes = std::make_unique<QuantSchemes>(std::span(&spec, 1), bed.params, 5);
    schemes->materialize(bed.queue);
    schemes->decide_as({&decided, 1});
    schemes->activate(3);
    return *this;
  }
  /// The sum of so many equal layers that read x, so that their gradients meet in dx.
  Result run(int layers = 1) {
    bed.params.begin_step();
    const Var vx = bed.tape.source(x);
    Var y = linear(bed.tape, vx, weights);
    for (int i = 1; i < layers; ++i) y = add(bed.tape, y, linear(bed.tape, vx, weights));
    Result r;
    r.y = read(bed.tape.value(y));
    bed.tape.backward_from(y, dy);
    r.dx = read(bed.tape.gradient_of(vx));
    bed.tape.reset();
    for (size_t i = 0; i < 2; ++i) r.dw[i] = read(weights[i]->grad);
    bed.arena.check_guards();
    bed.inputs.check_guards();
    return r;
  }
};

Result plain(DType dtype, int layers = 1) { return Layer(dtype).run(layers); }
Result quantized(DType dtype, int64_t outlier_rows, const LayerPatterns& decided, int layers = 1) {
  return Layer(dtype).quantize(group(outlier_rows), decided).run(layers);
}

Values row(const Values& v, int64_t r) {
  const auto cols = static_cast<int64_t>(v.size()) / rows;
  return {v.begin() + r * cols, v.begin() + (r + 1) * cols};
}
bool among(const std::vector<int64_t>& large, int64_t r) {
  return std::find(large.begin(), large.end(), r) != large.end();
}
/// What a plain product of fewer rows may be off by: it may add in another order.
double order(DType dtype) { return dtype == DType::f32 ? 1e-6 : 0x1p-8; }
/// Rows of `large` are those of `exact`, all others those of `rounded`, bit for bit.
void expect_rows(DType dtype, const Values& got, const std::vector<int64_t>& large, const Values& exact,
                 const Values& rounded) {
  ASSERT_EQ(got.size(), exact.size());
  for (int64_t r = 0; r < rows; ++r) {
    if (among(large, r))
      EXPECT_LE(relative_error(row(got, r), row(exact, r)), order(dtype)) << r;
    else
      EXPECT_EQ(row(got, r), row(rounded, r)) << r;
    EXPECT_GT(relative_error(row(rounded, r), row(exact, r)), 4 * order(dtype)) << r;
  }
}
/// The root of the mean squared error.
double error(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

}  // namespace

TEST(OutlierRows, AreThoseOfThePlainProductsAndAllOthersAsTheyWere) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name(dtype));
    const Result exact = plain(dtype);
    for (const RotatedProducts& rotated : {RotatedProducts{true, true, true}, {false, false, false}}) {
      const LayerPatterns d = decision(in_rows, in_rows, rotated);
      const Result without = quantized(dtype, 0, d), with = quantized(dtype, 3, d);
      expect_rows(dtype, with.y, large_x, exact.y, without.y);
      expect_rows(dtype, with.dx, large_dy, exact.dx, without.dx);
      EXPECT_EQ(with.dw, without.dw);
      // Nearly all of the error was in those rows.
      EXPECT_LT(error(with.y, exact.y), 0.2 * error(without.y, exact.y));
      EXPECT_LT(error(with.dx, exact.dx), 0.2 * error(without.dx, exact.dx));
    }
  }
}

TEST(OutlierRows, AreProductsOfTheWeightsAsTheyAre) {
  Layer layer(DType::f32);
  const Values x = read(layer.x), dy = read(layer.dy);
  Values w = read(layer.weights[0]->value);
  const Values k = read(layer.weights[1]->value);
  w.insert(w.end(), k.begin(), k.end());
  const auto at = [](const Values& v, int64_t r, int64_t c, int64_t cols) {
    return v[static_cast<size_t>(r * cols + c)];
  };
  const Result got = layer.quantize(group(3), decision(in_rows, in_rows)).run();
  for (int64_t r : large_x)
    for (int64_t o = 0; o < all; ++o) {
      double y = 0;
      for (int64_t i = 0; i < in; ++i) y += at(x, r, i, in) * at(w, o, i, in);
      EXPECT_NEAR(at(got.y, r, o, all), y, 1e-3) << r << " " << o;
    }
  for (int64_t r : large_dy)
    for (int64_t i = 0; i < in; ++i) {
      double dx = 0;
      for (int64_t o = 0; o < all; ++o) dx += at(dy, r, o, all) * at(w, o, i, in);
      EXPECT_NEAR(at(got.dx, r, i, in), dx, 1e-3) << r << " " << i;
    }
}

TEST(OutlierRows, AsManyAsThereAreMakeThePlainLayer) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t count : {rows, int64_t{256}}) {
      const LayerPatterns d = decision(in_rows, in_rows);
      const Result exact = plain(dtype), got = quantized(dtype, count, d);
      EXPECT_EQ(got.y, exact.y) << name(dtype) << " " << count;
      EXPECT_EQ(got.dx, exact.dx) << name(dtype) << " " << count;
      EXPECT_EQ(got.dw, quantized(dtype, 0, d).dw) << name(dtype) << " " << count;
    }
}

TEST(OutlierRows, AreTakenWhereTheMajorityFoundOutliersInRows) {
  const auto with = [](const PatternVotes& x, const PatternVotes& dy) {
    return quantized(DType::f32, 3, decision(x, dy));
  };
  const Result without = quantized(DType::f32, 0, decision(in_rows, in_rows)), both = with(in_rows, in_rows);
  EXPECT_EQ(with(in_columns, nowhere), without);
  EXPECT_EQ(with(nowhere, in_columns), without);
  EXPECT_EQ(with({3, 3, 0}, {3, 0, 3}), without) << "ties are no majority of rows";
  EXPECT_EQ(with(in_rows, nowhere), (Result{both.y, without.dx, without.dw}));
  EXPECT_EQ(with(nowhere, in_rows), (Result{without.y, both.dx, without.dw}));
}

TEST(OutlierRows, CountOnceWhereGradientsMeet) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const LayerPatterns d = decision(in_rows, in_rows);
    const Result exact = plain(dtype, 3), without = quantized(dtype, 0, d, 3),
                 got = quantized(dtype, 3, d, 3);
    for (int64_t r = 0; r < rows; ++r) {
      if (among(large_dy, r))
        EXPECT_LT(relative_error(row(got.dx, r), row(exact.dx, r)), dtype == DType::f32 ? 1e-5 : 1e-2) << r;
      else
        EXPECT_EQ(row(got.dx, r), row(without.dx, r)) << r;
    }
  }
}

TEST(OutlierRows, AreTakenWithoutGradientFormatsInForwardAlone) {
  QuantGroupSpec g = group(3), none = group(0);
  for (QuantGroupSpec* spec : {&g, &none}) spec->gradients = {}, spec->backward_rotation = 0;
  const LayerPatterns d = decision(in_rows, in_rows);
  const Result exact = plain(DType::f32), without = Layer(DType::f32).quantize(none, d).run(),
               got = Layer(DType::f32).quantize(g, d).run();
  expect_rows(DType::f32, got.y, large_x, exact.y, without.y);
  EXPECT_EQ(got.dx, without.dx);
  // Also where the formats of the operands do not fit together and dense products read them.
  g.activations = none.activations = QuantOperandSpec{.format = "int8_row"};
  const Result dense_without = Layer(DType::f32).quantize(none, d).run();
  expect_rows(DType::f32, Layer(DType::f32).quantize(g, d).run().y, large_x, exact.y, dense_without.y);
}

TEST(OutlierRows, DoNotDependOnThreadsAndAreChosenAnew) {
  const LayerPatterns d = decision(in_rows, in_rows);
  EXPECT_EQ(Layer(DType::bf16, 1).quantize(group(3), d).run(),
            Layer(DType::bf16, 3).quantize(group(3), d).run());
  Layer layer(DType::f32), exact(DType::f32);
  layer.quantize(group(1), d).run();
  Values x = read(layer.x);
  for (size_t c = 0; c < in; ++c) x[5 * in + c] = 400;
  write(layer.x, x);
  write(exact.x, x);
  EXPECT_LE(relative_error(row(layer.run().y, 5), row(exact.run().y, 5)), order(DType::f32));
}
