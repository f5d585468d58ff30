#include "kernels/norm.h"

#include <gtest/gtest.h>

#include "kernels/pointwise.h"
#include "tests/oracle/norm.h"
#include "tests/support/refusal.h"
#include "tests/support/slice.h"

using namespace osprey;
using namespace osprey::test;

namespace {

constexpr double eps = 1e-5;

/// Rows from one column to more than registers hold, aligned and not.
struct Size {
  int64_t rows, cols;
  Layout layout;
};
const std::vector<Size> sizes = {
    {1, 1, {}},         {3, 8, {}},     {70, 65, {0, 3}},    {530, 96, {}},  {40, 96, {1, 7}},
    {130, 256, {8, 8}}, {33, 1000, {}}, {19, 1024, {16, 0}}, {12, 1536, {}}, {9, 2304, {0, 8}},
    {5, 4096, {}},      {4, 8192, {}},  {3, 1500, {4, 1}},   {2, 20000, {}}, {300, 16, {}},
};

std::string text(const Size& s, DType dtype) {
  return fmt::format("{} {}x{} + {} + {}", name(dtype), s.rows, s.cols, s.layout.before, s.layout.after);
}

double tolerance(DType dtype) { return dtype == DType::bf16 ? 8e-3 : 5e-6; }

/// The tensors of one norm, filled, with outputs that hold NaN.
struct Tensors {
  Size size;
  DType dtype;
  Slice x, y, dy, dx, dsum, weight, bias, dweight, dbias, stats;

  Tensors(const Size& s, DType type, int64_t weights, int64_t stat_cols)
      : size(s),
        dtype(type),
        x(s.rows, s.cols, type, s.layout),
        y(s.rows, s.cols, type, s.layout),
        dy(s.rows, s.cols, type, s.layout),
        dx(s.rows, s.cols, type, s.layout),
        dsum(s.rows, s.cols, type, s.layout),
        weight(1, weights, type, {s.layout.before, 0}),
        bias(1, weights, type, {s.layout.before, 0}),
        dweight(1, weights, DType::f32),
        dbias(1, weights, DType::f32),
        stats(s.rows, stat_cols, DType::f32) {
    x.fill(1, 2, 0.3);
    dy.fill(2);
    dsum.fill(3);
    weight.fill(4, 0.3, 1);
    bias.fill(5);
  }
  Tensor rstd(OnDevice& on) { return stats.on(on).view({size.rows}); }
  void forward(OnDevice& on) {
    kernels::rmsnorm_forward(on.queue, {.y = y.on(on),
                                        .rstd = rstd(on),
                                        .x = x.on(on),
                                        .weight = weight.vector_on(on),
                                        .eps = static_cast<float>(eps)});
  }
  kernels::RmsnormBackward backward(OnDevice& on, Buffer& partial) {
    return {.dx = {dx.on(on), false},
            .dweight = {dweight.vector_on(on), false},
            .dy = dy.on(on),
            .x = x.on(on),
            .weight = weight.vector_on(on),
            .rstd = rstd(on),
            .partial = on(partial)};
  }
  Buffer partial(OnDevice& on, int64_t per_column) const {
    return Buffer({kernels::norm_partials(on.queue, size.rows), per_column}, DType::f32);
  }
  bool surroundings_intact() const {
    for (const Slice* s : {&x, &y, &dy, &dx, &dsum, &weight, &bias, &dweight, &dbias, &stats})
      if (!s->surroundings_intact()) return false;
    return true;
  }
};

std::vector<double> plus(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace

TEST(RmsnormKernel, AgreesWithTheOracleForRowsOfAnyWidthAndAlignment) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : sizes)
      for (int64_t weights : {s.cols, int64_t{1}}) {
        SCOPED_TRACE(text(s, dtype));
        Tensors t(s, dtype, weights, 1);
        OnDevice on;
        Buffer partial = t.partial(on, weights);
        t.forward(on);
        kernels::rmsnorm_backward(on.queue, t.backward(on, partial));
        on.fetch();
        const auto x = t.x.values(), w = t.weight.values();
        const auto cols = static_cast<size_t>(s.cols);
        const auto g = oracle::norm_backward(t.dy.values(), x, w, cols, eps, oracle::Centre::zero);
        EXPECT_LT(worst_error(t.y.values(), oracle::rmsnorm(x, w, cols, eps)), tolerance(dtype));
        if (s.cols > 1) {  // xhat of one column is its sign
          EXPECT_LT(worst_error(t.dx.values(), g.dx), tolerance(dtype));
        }
        EXPECT_LT(worst_error(t.dweight.values(), g.dweight), 2e-5);
        EXPECT_TRUE(t.surroundings_intact() && partial.guards_intact());
      }
}

TEST(RmsnormKernel, AddsToGradientsThatAreThere) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : {Size{40, 65, {1, 2}}, Size{70, 512, {}}, Size{7, 2048, {}}}) {
      SCOPED_TRACE(text(s, dtype));
      Tensors t(s, dtype, s.cols, 1);
      t.dx.fill(8);
      t.dweight.fill(9);
      const auto dx = t.dx.values(), dweight = t.dweight.values();
      OnDevice on;
      Buffer partial = t.partial(on, s.cols);
      t.forward(on);
      kernels::RmsnormBackward b = t.backward(on, partial);
      b.dx.add = b.dweight.add = true;
      kernels::rmsnorm_backward(on.queue, b);
      on.fetch();
      const auto g = oracle::norm_backward(t.dy.values(), t.x.values(), t.weight.values(),
                                           static_cast<size_t>(s.cols), eps, oracle::Centre::zero);
      EXPECT_LT(worst_error(t.dx.values(), plus(g.dx, dx)), tolerance(dtype));
      EXPECT_LT(worst_error(t.dweight.values(), plus(g.dweight, dweight)), 2e-5);
      EXPECT_TRUE(t.surroundings_intact());
    }
}

TEST(RmsnormKernel, TakesTheGradientOfTheSumsOtherReaderIntoDx) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : {Size{40, 65, {1, 2}}, Size{70, 512, {}}, Size{7, 2048, {}}, Size{3, 9000, {}}}) {
      SCOPED_TRACE(text(s, dtype));
      Tensors t(s, dtype, 1, 1);
      OnDevice on;
      Buffer partial = t.partial(on, 1);
      t.forward(on);
      kernels::RmsnormBackward b = t.backward(on, partial);
      b.dsum = t.dsum.on(on);
      kernels::rmsnorm_backward(on.queue, b);
      on.fetch();
      const auto g = oracle::norm_backward(t.dy.values(), t.x.values(), t.weight.values(),
                                           static_cast<size_t>(s.cols), eps, oracle::Centre::zero);
      EXPECT_LT(worst_error(t.dx.values(), plus(g.dx, t.dsum.values())), tolerance(dtype));
      const auto apart = t.dx.values();
      b.dx.tensor = b.dsum;
      kernels::rmsnorm_backward(on.queue, b);
      on.fetch();
      EXPECT_EQ(t.dsum.values(), apart) << "dx may lie where dsum lies";
      EXPECT_TRUE(t.surroundings_intact());
    }
}

TEST(RmsnormKernel, FrozenInputsGetNoGradient) {
  Tensors t({70, 96, {}}, DType::bf16, 96, 1);
  OnDevice on;
  Buffer partial = t.partial(on, 96);
  t.forward(on);
  kernels::RmsnormBackward b = t.backward(on, partial), only_weight = b;
  b.dweight = {};
  kernels::rmsnorm_backward(on.queue, b);
  only_weight.dx = {};
  on.fetch();
  EXPECT_TRUE(std::isnan(t.dweight.get(0, 0)));
  const auto dx = t.dx.values();
  kernels::rmsnorm_backward(on.queue, only_weight);
  on.fetch();
  EXPECT_EQ(t.dx.values(), dx);
  EXPECT_FALSE(std::isnan(t.dweight.get(0, 0)));
}

TEST(RmsnormKernel, OfASumIsTheSumAndItsNormBitForBit) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : sizes) {
      SCOPED_TRACE(text(s, dtype));
      Tensors apart(s, dtype, s.cols, 1), together(s, dtype, s.cols, 1);
      const auto sum_of = [&](Tensors& t) -> Slice& { return t.dx; };
      OnDevice on;
      kernels::add(on.queue, {.y = sum_of(apart).on(on), .a = apart.x.on(on), .b = apart.dsum.on(on)});
      kernels::rmsnorm_forward(on.queue, {.y = apart.y.on(on),
                                          .rstd = apart.rstd(on),
                                          .x = sum_of(apart).on(on),
                                          .weight = apart.weight.vector_on(on)});
      kernels::AddRmsnormForward both{.sum = sum_of(together).on(on),
                                      .y = together.y.on(on),
                                      .rstd = together.rstd(on),
                                      .a = together.x.on(on),
                                      .b = together.dsum.on(on),
                                      .weight = together.weight.vector_on(on)};
      kernels::add_rmsnorm_forward(on.queue, both);
      on.fetch();
      EXPECT_EQ(sum_of(together).values(), sum_of(apart).values());
      EXPECT_EQ(together.y.values(), apart.y.values());
      EXPECT_EQ(together.stats.values(), apart.stats.values());
      both.sum = both.a;
      kernels::add_rmsnorm_forward(on.queue, both);
      on.fetch();
      EXPECT_EQ(together.x.values(), sum_of(apart).values()) << "the sum may lie where a lies";
      EXPECT_EQ(together.y.values(), apart.y.values());
      EXPECT_TRUE(together.surroundings_intact());
    }
}

TEST(RmsnormKernel, RunsAgreeBitForBitWhateverTheThreads) {
  std::vector<double> dx, dweight;
  for (int threads : {1, 2, 3}) {
    Tensors t({700, 96, {}}, DType::f32, 96, 1);
    OnDevice on(threads);
    Buffer partial = t.partial(on, 96);
    t.forward(on);
    kernels::rmsnorm_backward(on.queue, t.backward(on, partial));
    on.fetch();
    if (threads == 1) dx = t.dx.values(), dweight = t.dweight.values();
    EXPECT_EQ(t.dx.values(), dx);
    EXPECT_EQ(t.dweight.values(), dweight);
  }
}

TEST(RmsnormKernel, RefusesASecondGradientForADxThatIsAddedTo) {
  Tensors t({4, 8, {}}, DType::f32, 8, 1);
  OnDevice on;
  Buffer partial = t.partial(on, 8);
  kernels::RmsnormBackward b = t.backward(on, partial);
  b.dsum = t.dsum.on(on);
  b.dx.add = true;
  EXPECT_EQ(refusal([&] { kernels::rmsnorm_backward(on.queue, b); }),
            "[rmsnorm] dsum needs a dx to overwrite");
}

TEST(LayernormKernel, AgreesWithTheOracleForRowsOfAnyWidthAndAlignment) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const Size& s : sizes) {
      SCOPED_TRACE(text(s, dtype));
      Tensors t(s, dtype, s.cols, 2);
      t.dbias.fill(9);
      const auto dbias = t.dbias.values();
      OnDevice on;
      Buffer partial = t.partial(on, 2 * s.cols);
      kernels::layernorm_forward(on.queue, {.y = t.y.on(on),
                                            .stats = t.stats.on(on),
                                            .x = t.x.on(on),
                                            .weight = t.weight.vector_on(on),
                                            .bias = t.bias.vector_on(on),
                                            .eps = static_cast<float>(eps)});
      kernels::layernorm_backward(on.queue, {.dx = {t.dx.on(on), false},
                                             .dweight = {t.dweight.vector_on(on), false},
                                             .dbias = {t.dbias.vector_on(on), true},
                                             .dy = t.dy.on(on),
                                             .x = t.x.on(on),
                                             .weight = t.weight.vector_on(on),
                                             .stats = t.stats.on(on),
                                             .partial = on(partial)});
      on.fetch();
      const auto x = t.x.values(), w = t.weight.values();
      const auto cols = static_cast<size_t>(s.cols);
      const auto g = oracle::norm_backward(t.dy.values(), x, w, cols, eps, oracle::Centre::mean);
      EXPECT_LT(worst_error(t.y.values(), oracle::layernorm(x, w, t.bias.values(), cols, eps)),
                tolerance(dtype));
      if (s.cols > 1) {
        EXPECT_LT(worst_error(t.dx.values(), g.dx), tolerance(dtype));
        EXPECT_LT(worst_error(t.dweight.values(), g.dweight), 2e-5);
      }
      EXPECT_LT(worst_error(t.dbias.values(), plus(g.dbias, dbias)), 2e-5);
      EXPECT_TRUE(t.surroundings_intact() && partial.guards_intact());
    }
}
