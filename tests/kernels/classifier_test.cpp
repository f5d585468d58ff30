#include "kernels/classifier.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "kernels/pointwise.h"
#include "tests/oracle/classifier.h"
#include "tests/support/on_device.h"

namespace osprey {
namespace {

using kernels::Classifier;
using kernels::Gradients;
using test::Buffer;
using test::OnDevice;

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
  Buffer scratch(const Queue& queue, Gradients g) const {
    return Buffer({kernels::classifier_scratch(queue, rows, vocabulary, dtype, g)}, DType::f32);
  }
  oracle::Classifier want(double scale) const {
    return oracle::classifier(x.values(), weight.values(), ids, width, scale);
  }
  int64_t rows, width, vocabulary;
  DType dtype;
  Buffer x, weight, targets;
  std::vector<int> ids;
};

Buffer filled(const Shape& shape, DType dtype, double value) {
  Buffer b(shape, dtype);
  b.fill_value(value);
  return b;
}

struct Results {
  explicit Results(const Head& h)
      : dx({h.rows, h.width}, h.dtype, 2),
        dweight({h.vocabulary, h.width}, DType::f32, 4),
        token_losses({h.rows}, DType::f32),
        loss({1}, DType::f32),
        sums(filled({2}, DType::f64, 0)) {}
  Buffer dx, dweight, token_losses, loss, sums;
  bool guards_intact() const {
    bool intact = true;
    for (const Buffer* b : {&dx, &dweight, &token_losses, &loss, &sums})
      intact = intact && b->guards_intact();
    return intact;
  }
};

enum class Weights { overwritten, added_to };

/// With gradients, scaled by `scale`.
void train(Head& h, Results& r, double scale, Weights weights = Weights::overwritten, int threads = 2) {
  OnDevice on(threads);
  Buffer scratch = h.scratch(on.queue, Gradients::wanted), grad_scale = filled({1}, DType::f64, scale);
  kernels::classifier(on.queue, {.x = on(h.x),
                                 .weight = on(h.weight),
                                 .targets = on(h.targets),
                                 .grad_scale = on(grad_scale),
                                 .sums = on(r.sums),
                                 .loss = on(r.loss),
                                 .dx = on(r.dx),
                                 .dweight = {on(r.dweight), weights == Weights::added_to},
                                 .token_losses = on(r.token_losses),
                                 .scratch = on(scratch)});
  on.fetch();
  EXPECT_TRUE(scratch.guards_intact());
}

void evaluate(Head& h, Results& r, int threads = 1) {
  OnDevice on(threads);
  Buffer scratch = h.scratch(on.queue, Gradients::none);
  kernels::classifier(on.queue, {.x = on(h.x),
                                 .weight = on(h.weight),
                                 .targets = on(h.targets),
                                 .sums = on(r.sums),
                                 .token_losses = on(r.token_losses),
                                 .scratch = on(scratch)});
  on.fetch();
  EXPECT_TRUE(scratch.guards_intact());
}

TEST(Classifier, StridedInputsAgreeWithTheOracleAndGuardsStayIntact) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [n, c, v] :
         {std::array<int64_t, 3>{1, 7, 3}, {90, 40, 129}, {33, 64, 2100}, {7, 16, 8192}, {6, 8, 20001}}) {
      SCOPED_TRACE(fmt::format("{} {}x{} to {}", name(dtype), n, c, v));
      Head h(n, c, v, dtype);
      const oracle::Classifier want = h.want(0.5);
      Results got(h);
      train(h, got, 0.5);
      const double tolerance = dtype == DType::bf16 ? 1.5e-2 : 2e-5;
      EXPECT_EQ(got.sums.get(1), static_cast<double>(want.tokens));
      EXPECT_NEAR(got.sums.get(0), want.loss, 1e-5 * want.loss + 1e-6);
      EXPECT_NEAR(got.loss.get(0), 0.5 * want.loss, 1e-5 * want.loss + 1e-6);
      EXPECT_LT(relative_error(got.dx.values(), want.dx), tolerance);
      EXPECT_LT(relative_error(got.dweight.values(), want.dweight), tolerance);
      EXPECT_LT(relative_error(got.token_losses.values(), want.token_losses), 1e-5);
      EXPECT_TRUE(got.guards_intact());
    }
}

TEST(Classifier, SumsAndWeightGradientsAddUpAndTheLossDoesNot) {
  Head h(50, 24, 70, DType::f32);
  const oracle::Classifier want = h.want(2);
  Results got(h);
  train(h, got, 2);
  train(h, got, 2, Weights::added_to);
  EXPECT_NEAR(got.sums.get(0), 2 * want.loss, 1e-5 * want.loss);
  EXPECT_EQ(got.sums.get(1), 2.0 * static_cast<double>(want.tokens));
  EXPECT_NEAR(got.loss.get(0), 2 * want.loss, 1e-5 * want.loss);
  std::vector<double> twice = want.dweight;
  for (double& g : twice) g *= 2;
  EXPECT_LT(relative_error(got.dweight.values(), twice), 2e-5);
}

TEST(Classifier, RowsOfTheHeadsGradientAreThoseOfTheWholeOne) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const auto& [n, c, v] :
         {std::array<int64_t, 3>{1, 8, 3}, {90, 40, 129}, {70, 64, 2100}, {6, 8, 20001}, {2500, 8, 70}}) {
      SCOPED_TRACE(fmt::format("{} {}x{} to {}", name(dtype), n, c, v));
      Head h(n, c, v, dtype);
      const oracle::Classifier want = h.want(0.5);
      Results got(h);
      const int64_t at_a_time = v / 3 + 1;
      OnDevice on(2);
      Buffer scratch = h.scratch(on.queue, Gradients::wanted), grad_scale = filled({1}, DType::f64, 0.5),
             log_sums({n}, DType::f32),
             row_scratch({kernels::classifier_rows_scratch(n, at_a_time, dtype)}, DType::f32);
      const Tensor x = on(h.x), weight = on(h.weight), targets = on(h.targets), sums = on(log_sums),
                   scale = on(grad_scale), dweight = on(got.dweight), some = on(row_scratch);
      kernels::classifier(on.queue, {.x = x,
                                     .weight = weight,
                                     .targets = targets,
                                     .grad_scale = scale,
                                     .sums = on(got.sums),
                                     .loss = on(got.loss),
                                     .dx = on(got.dx),
                                     .log_sums = sums,
                                     .scratch = on(scratch)});
      std::deque<Buffer> blocks;  // rows of `dweight` lie apart
      for (int64_t first = 0; first < v; first += at_a_time) {
        const int64_t end = std::min(v, first + at_a_time);
        const Tensor to = on(blocks.emplace_back(Shape{end - first, c}, DType::f32));
        kernels::classifier_rows(on.queue, {.x = x,
                                            .weight = weight.row_range(first, end),
                                            .targets = targets,
                                            .log_sums = sums,
                                            .grad_scale = scale,
                                            .dweight = to,
                                            .scratch = some,
                                            .first_row = first});
        kernels::copy(on.queue, {.y = dweight.row_range(first, end), .x = to});
      }
      on.fetch();
      EXPECT_LT(relative_error(got.dweight.values(), want.dweight), dtype == DType::bf16 ? 1.5e-2 : 2e-5);
      EXPECT_TRUE(got.guards_intact() && scratch.guards_intact() && row_scratch.guards_intact());
    }
}

TEST(Classifier, EvaluationGivesTheLossesOfTrainingBitForBit) {
  Head h(130, 32, 257, DType::bf16);
  Results trained(h), evaluated(h);
  train(h, trained, 1);
  evaluate(h, evaluated);
  EXPECT_TRUE(trained.sums.same_bits(evaluated.sums));
  EXPECT_TRUE(trained.token_losses.same_bits(evaluated.token_losses));
}

TEST(Classifier, LargeLogitsAreNoTrouble) {
  Head h(40, 16, 3000, DType::f32);
  h.x.fill(1, 60);
  h.weight.fill(2, 10);
  const oracle::Classifier want = h.want(1);
  Results got(h);
  train(h, got, 1);
  EXPECT_NEAR(got.sums.get(0), want.loss, 1e-5 * want.loss);
  EXPECT_LT(relative_error(got.dx.values(), want.dx), 2e-3);  // one step of fp32 at logits of 4000 is 2e-4
}

TEST(Classifier, ATargetOutsideTheVocabularyIsRefusedBeforeWritingOrMakesTheLossNaN) {
  Head h(6, 8, 5, DType::f32);
  h.targets.tensor().as<int32_t>()[4] = 5;
  Results r(h);
  r.dx.fill_value(3);
  if (test::test_queue().device.kind == DeviceKind::cpu) {
    EXPECT_THROW(train(h, r, 1), Error);
    for (double v : r.dx.values()) EXPECT_EQ(v, 3);
    return;
  }
  train(h, r, 1);
  EXPECT_TRUE(std::isnan(r.sums.get(0)));
  EXPECT_TRUE(std::isnan(r.loss.get(0)));
  EXPECT_TRUE(std::isnan(r.token_losses.get(4)));
  EXPECT_TRUE(std::isfinite(r.token_losses.get(3)));
}

}  // namespace
}  // namespace osprey
