#include "framework/ops/pointwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/check.h"
#include "kernels/numerics/exp.h"
#include "kernels/pointwise.h"
#include "tests/support/op_case.h"

using namespace osprey;
using namespace osprey::test;

TEST(Add, PassesTheOpCase) {
  check_op({.name = "add",
            .inputs = {{.shape = {33, 17}}, {.shape = {33, 17}}},
            .build = [](Tape& t, const std::vector<Var>& v) { return add(t, v[0], v[1]); },
            .oracle =
                [](const std::vector<Values>& v) {
                  Values y = v[0];
                  for (size_t i = 0; i < y.size(); ++i) y[i] += v[1][i];
                  return y;
                }});
}

TEST(Add, OfAValueToItselfHasGradientTwo) {
  check_op({.name = "add to itself",
            .inputs = {{.shape = {5, 9}}},
            .build = [](Tape& t, const std::vector<Var>& v) { return add(t, v[0], v[0]); },
            .oracle =
                [](const std::vector<Values>& v) {
                  Values y = v[0];
                  for (double& e : y) e *= 2;
                  return y;
                }});
}

TEST(AddBias, PassesTheOpCase) {
  check_op({.name = "add_bias",
            .inputs = {{.shape = {29, 11}}, {.shape = {11}, .kind = OpInput::Kind::parameter}},
            .build = [](Tape& t, const std::vector<Var>& v) { return add_bias(t, v[0], v[1]); },
            .oracle =
                [](const std::vector<Values>& v) {
                  Values y = v[0];
                  for (size_t i = 0; i < y.size(); ++i) y[i] += v[1][i % 11];
                  return y;
                }});
}

TEST(AddBias, OfSeveralSideBySidePassesTheOpCase) {
  // In place, so the op case, which runs twice on its inputs, gives it a copy.
  const auto fresh = [](Tape& t, Var x) {
    const Tensor y = t.alloc(t.value(x).shape, t.value(x).dtype);
    kernels::copy(t.queue(), {.y = y, .x = t.value(x)});
    return t.record("fresh", y, {x}, [=, &t](Tensor dy) { t.pass_grad(x, dy); });
  };
  constexpr auto parameter = OpInput::Kind::parameter;
  check_op({.name = "add_biases",
            .inputs = {{.shape = {29, 24}},
                       {.shape = {11}, .kind = parameter},
                       {.shape = {5}, .kind = parameter},
                       {.shape = {8}, .kind = parameter}},
            .build =
                [fresh](Tape& t, const std::vector<Var>& v) {
                  Parameter* const biases[] = {t.parameter(v[1]), t.parameter(v[2]), t.parameter(v[3])};
                  return add_biases(t, fresh(t, v[0]), biases);
                },
            .oracle =
                [](const std::vector<Values>& v) {
                  Values y = v[0];
                  for (size_t i = 0; i < y.size(); ++i) {
                    const size_t c = i % 24;
                    y[i] += c < 11 ? v[1][c] : c < 16 ? v[2][c - 11] : v[3][c - 16];
                  }
                  return y;
                }});
}

TEST(AddBias, OfSeveralMustCoverTheColumns) {
  TestBed bed;
  const Var x = bed.tape.input(make(bed.inputs, {2, 9}, DType::f32, Values(18, 1.0)));
  ParamStore params;
  Parameter* const biases[] = {&params.add("a", -1, {4}, {}), &params.add("b", -1, {4}, {})};
  params.materialize(bed.tape.queue().device, DType::f32, ParamStore::Gradients::off);
  EXPECT_THROW(add_biases(bed.tape, x, biases), Error);
  EXPECT_THROW(add_biases(bed.tape, x, std::span(biases).first(1)), Error);
}

TEST(Activate, PassesTheOpCase) {
  for (const Activation activation : {Activation::gelu, Activation::relu})
    for (const int64_t cols : {21, 32})
      check_op({.name = activation == Activation::gelu ? "gelu" : "relu",
                .inputs = {{.shape = {37, cols}, .scale = 2}},
                .build = [=](Tape& t, const std::vector<Var>& v) { return activate(t, v[0], activation); },
                .oracle =
                    [=](const std::vector<Values>& v) {
                      Values y = v[0];
                      for (double& e : y)
                        e = activation == Activation::relu
                                ? std::max(e, 0.0)
                                : 0.5 * e * (1 + std::tanh(std::sqrt(2 / M_PI) * (e + 0.044715 * e * e * e)));
                      return y;
                    }});
}

TEST(Activate, SaturatesWithoutOverflow) {
  TestBed bed;
  const Values x = {1e30, -1e30, 11, -11, 0};
  const Var in = bed.tape.source(make(bed.inputs, {1, 5}, DType::f32, x));
  const Var out = activate(bed.tape, in, Activation::gelu);
  const Values y = read(bed.tape.value(out));
  EXPECT_EQ(y[0], static_cast<double>(1e30f));
  EXPECT_EQ(y[2], 11);
  EXPECT_NEAR(y[1], 0, 1e-6);
  EXPECT_NEAR(y[3], 0, 1e-6);
  bed.tape.backward_from(out, make(bed.inputs, {1, 5}, DType::f32, Values(5, 1.0)));
  const Values dx = read(bed.tape.gradient_of(in));
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(dx[i], (Values{1, 0, 1, 0, 0.5})[i], 1e-6) << i;
  bed.tape.reset();
}

TEST(Swiglu, PassesTheOpCase) {
  check_op({.name = "swiglu",
            .inputs = {{.shape = {37, 2 * 21}, .scale = 2}},
            .build = [](Tape& t, const std::vector<Var>& v) { return swiglu(t, v[0]); },
            .oracle =
                [](const std::vector<Values>& v) {
                  Values y;
                  for (size_t r = 0; r < 37; ++r)
                    for (size_t c = 0; c < 21; ++c) {
                      const double g = v[0][r * 42 + c], u = v[0][r * 42 + 21 + c];
                      y.push_back(g / (1 + std::exp(-g)) * u);
                    }
                  return y;
                }});
}

TEST(Embedding, PassesTheOpCase) {
  TestBed bed;
  const std::vector<int> ids = {3, 0, 3, 6, 2, 3};
  const Tensor tokens = make_i32(bed.inputs, {6}, ids);
  check_op({.name = "embedding",
            .inputs = {{.shape = {7, 12}, .kind = OpInput::Kind::parameter}},
            .build = [&](Tape& t, const std::vector<Var>& v) { return embedding(t, tokens, v[0]); },
            .oracle =
                [&](const std::vector<Values>& v) {
                  Values y;
                  for (int id : ids)
                    for (size_t c = 0; c < 12; ++c) y.push_back(v[0][static_cast<size_t>(id) * 12 + c]);
                  return y;
                }});
}

TEST(Embedding, RefusesATokenOutsideTheVocabulary) {
  if (test_device().kind != DeviceKind::cpu)
    GTEST_SKIP() << "a GPU makes the token's row NaN: EmbeddingKernel";
  TestBed bed;
  Parameter& p = bed.params.add("embed.weight", -1, {7, 12}, {});
  bed.params.materialize(bed.queue.device, DType::f32, ParamStore::Gradients::on);
  EXPECT_THROW(embedding(bed.tape, make_i32(bed.inputs, {2}, {1, 7}), bed.tape.leaf(p)), Error);
  EXPECT_THROW(embedding(bed.tape, make_i32(bed.inputs, {2}, {-1, 2}), bed.tape.leaf(p)), Error);
}

TEST(FastExp, IsAccurateAndKeepsSpecialValues) {
  double worst = 0;
  for (double x = -87; x <= 87; x += 0.0137)
    worst = std::max(worst, std::abs(static_cast<double>(fast_exp(static_cast<float>(x))) /
                                         std::exp(static_cast<double>(static_cast<float>(x))) -
                                     1));
  EXPECT_LT(worst, 4e-7);
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-INFINITY), 0.0f);
  EXPECT_TRUE(std::isnan(fast_exp(NAN)));
}
