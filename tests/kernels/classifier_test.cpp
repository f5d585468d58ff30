#include "kernels/classifier.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/oracle/classifier.h"
#include "tests/support/buffer.h"

namespace osprey {
namespace {

using kernels::Classifier;
using kernels::Gradients;
using test::Buffer;

const Queue one{.device = {}, .threads = 1}, two{.device = {}, .threads = 2};

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double worst = 0, top = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(got[i] - want[i]));
    top = std::max(top, std::fabs(want[i]));
  }
  return worst / top;
}

struct Head {
  Head(int64_t n, int64_t c, int64_t v, DType type)
      : rows(n),
        width(c),
        vocabulary(v),
        dtype(type),
        x({n, c}, type, 3),
        weight({v, c}, type, 1),
        targets({n}, DType::i32) {
    x.fill(1);
    weight.fill(2, 0.5);
    for (int64_t i = 0; i < n; ++i) {
      ids.push_back(i % 5 == 2 ? -1 : static_cast<int>((i * 17 + 1) % v));
      targets.tensor().as<int32_t>()[i] = ids.back();
    }
  }
  Buffer scratch(Gradients g) const {
    return Buffer({kernels::classifier_scratch(two, rows, vocabulary, dtype, g)}, DType::f32);
  }
  oracle::Classifier want(double scale) const {
    return oracle::classifier(x.values(), weight.values(), ids, width, scale);
  }
  int64_t rows, width, vocabulary;
  DType dtype;
  Buffer x, weight, targets;
  std::vector<int> ids;
};

TEST(Classifier, StridedInputsAgreeWithTheOracleAndGuardsStayIntact) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [n, c, v] : {std::array<int64_t, 3>{1, 7, 3}, {90, 40, 129}, {33, 64, 2100}}) {
      SCOPED_TRACE(fmt::format("{} {}x{} to {}", name(dtype), n, c, v));
      const Head h(n, c, v, dtype);
      const oracle::Classifier want = h.want(0.5);
      Buffer scratch = h.scratch(Gradients::wanted), dx({n, c}, dtype, 2), dw({v, c}, DType::f32, 4),
             losses({n}, DType::f32);
      double half = 0.5, sums[2] = {};
      kernels::classifier(two, {.x = h.x,
                                .weight = h.weight,
                                .targets = h.targets,
                                .grad_scale = make_tensor(&half, {1}, DType::f64),
                                .sums = make_tensor(sums, {2}, DType::f64),
                                .dx = dx,
                                .dweight = {dw, false},
                                .token_losses = losses,
                                .scratch = scratch});
      const double tolerance = dtype == DType::bf16 ? 1.5e-2 : 2e-5;
      EXPECT_EQ(sums[1], want.tokens);
      EXPECT_NEAR(sums[0], want.loss, 1e-5 * want.loss + 1e-6);
      EXPECT_LT(relative_error(dx.values(), want.dx), tolerance);
      EXPECT_LT(relative_error(dw.values(), want.dweight), tolerance);
      EXPECT_LT(relative_error(losses.values(), want.token_losses), 1e-5);
      for (const Buffer* b : {&scratch, &dx, &dw, &losses}) EXPECT_TRUE(b->guards_intact());
    }
}

TEST(Classifier, EvaluationGivesTheLossesOfTrainingBitForBit) {
  const Head h(130, 32, 257, DType::bf16);
  Buffer scratch = h.scratch(Gradients::wanted), small = h.scratch(Gradients::none),
         dx({130, 32}, DType::bf16);
  Buffer trained({130}, DType::f32), evaluated({130}, DType::f32);
  double a[2] = {}, b[2] = {};
  kernels::classifier(two, {.x = h.x,
                            .weight = h.weight,
                            .targets = h.targets,
                            .sums = make_tensor(a, {2}, DType::f64),
                            .dx = dx,
                            .token_losses = trained,
                            .scratch = scratch});
  kernels::classifier(one, {.x = h.x,
                            .weight = h.weight,
                            .targets = h.targets,
                            .sums = make_tensor(b, {2}, DType::f64),
                            .token_losses = evaluated,
                            .scratch = small});
  EXPECT_EQ(a[0], b[0]);
  EXPECT_EQ(a[1], b[1]);
  EXPECT_TRUE(trained.same_bits(evaluated));
}

TEST(Classifier, RefusesATargetOutsideTheVocabularyBeforeWriting) {
  Head h(6, 8, 5, DType::f32);
  h.targets.tensor().as<int32_t>()[4] = 5;
  Buffer scratch = h.scratch(Gradients::wanted), dx({6, 8}, DType::f32);
  dx.fill_value(3);
  double sums[2] = {};
  EXPECT_THROW(kernels::classifier(two, {.x = h.x,
                                         .weight = h.weight,
                                         .targets = h.targets,
                                         .sums = make_tensor(sums, {2}, DType::f64),
                                         .dx = dx,
                                         .scratch = scratch}),
               Error);
  for (double v : dx.values()) EXPECT_EQ(v, 3);
}

}  // namespace
}  // namespace osprey
