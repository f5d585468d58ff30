#include "kernels/symmetric_product.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/on_device.h"

namespace osprey {
namespace {

using test::Buffer;
using test::OnDevice;

struct Case {
  int64_t m, k;
  DType dtype;
  float beta = 0;
  int64_t batch = 0;  // 0: matrices without a batch dimension
};

Shape shape_of(const Case& c, int64_t cols) { return c.batch ? Shape{c.batch, c.m, cols} : Shape{c.m, cols}; }

void expect_matches_double(const Case& c) {
  SCOPED_TRACE(fmt::format("{} {} x {} beta {} batch {}", name(c.dtype), c.m, c.k, c.beta, c.batch));
  Buffer a(shape_of(c, c.k), c.dtype), result(shape_of(c, c.m), c.dtype), alone(shape_of(c, c.m), c.dtype);
  a.fill(1);
  const int64_t count = c.batch ? c.batch : 1, m = c.m;
  if (c.beta != 0)  // otherwise a NaN stands there
    for (Buffer* b : {&result, &alone})
      for (int64_t r = 0; r < count * m; ++r)
        for (int64_t j = 0; j < m; ++j) {
          const int64_t i = r % m;
          b->set(r, j, random_normal(1, 2, static_cast<uint64_t>(i * j + i + j)));
        }
  const std::vector<double> before = result.values(), left = a.values();
  for (Buffer* to : {&result, &alone}) {
    OnDevice on(to == &result ? 2 : 1);
    kernels::symmetric_product(on.queue, {.c = on(*to), .a = on(a), .alpha = 0.5f, .beta = c.beta});
    on.fetch();
  }
  EXPECT_TRUE(result.same_bits(alone)) << "the result depends on the number of threads";
  EXPECT_TRUE(result.guards_intact());
  const std::vector<double> got = result.values();
  const double tolerance = c.dtype == DType::bf16 ? 5e-3 : 2e-3;
  for (int64_t r = 0; r < count * m; ++r)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t i = r % m, first = r - i;
      double dot = 0, size = 0;
      for (int64_t l = 0; l < c.k; ++l) {
        const double product =
            left[static_cast<size_t>(r * c.k + l)] * left[static_cast<size_t>((first + j) * c.k + l)];
        dot += product;
        size += std::abs(product);
      }
      const auto at = static_cast<size_t>(r * m + j);
      const double wanted = 0.5 * dot + (c.beta == 0 ? 0 : c.beta * before[at]);
      ASSERT_NEAR(got[at], wanted, tolerance * (std::abs(wanted) + 1e-4 * size)) << r << ", " << j;
      if (std::abs(i - j) >= 128) {
        ASSERT_EQ(got[at], got[static_cast<size_t>((first + j) * m + i)]);
      }
    }
}

TEST(SymmetricProduct, AgreesWithDoubleOnEveryBlock) {
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 3}, {127, 40}, {128, 64}, {300, 96}, {131, 2111}})
    for (float beta : {0.0f, -1.5f})
      for (DType dtype : {DType::f32, DType::bf16}) expect_matches_double({m, k, dtype, beta});
}

TEST(SymmetricProduct, AddsWhatStandsElsewhereAsWhatStandsInPlace) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t batch : {0, 2}) {
      const Case c{140, 24, dtype, -1.5f, batch};
      Buffer a(shape_of(c, c.k), dtype), in_place(shape_of(c, c.m), dtype),
          elsewhere(shape_of(c, c.m), dtype), addend(shape_of(c, c.m), dtype);
      a.fill(1);
      OnDevice on;
      for (Buffer* b : {&in_place, &addend})
        kernels::symmetric_product(on.queue, {.c = on(*b), .a = on(a), .alpha = 2});
      kernels::symmetric_product(on.queue, {.c = on(in_place), .a = on(a), .alpha = 0.5f, .beta = c.beta});
      kernels::symmetric_product(
          on.queue, {.c = on(elsewhere), .a = on(a), .alpha = 0.5f, .beta = c.beta, .addend = on(addend)});
      on.fetch();
      EXPECT_TRUE(elsewhere.same_bits(in_place));
      EXPECT_TRUE(elsewhere.guards_intact() && addend.guards_intact());
    }
}

TEST(SymmetricProduct, TakesBatches) {
  for (float beta : {0.0f, -1.5f})
    for (DType dtype : {DType::f32, DType::bf16}) {
      expect_matches_double({40, 24, dtype, beta, 5});
      expect_matches_double({131, 17, dtype, beta, 3});
      expect_matches_double({200, 8, dtype, beta, 1});
    }
}

TEST(SymmetricProduct, SoManyThatAGpuTakesThemByBlockRows) {
  expect_matches_double({130, 2, DType::f32, -1.5f, 1024});
}

TEST(SymmetricProduct, WrongShapesAreNamed) {
  Buffer a({3, 4}, DType::f32), c({4, 4}, DType::f32);
  try {
    kernels::symmetric_product({}, {.c = c, .a = a});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[symmetric_product] c must be (3, 3), got (4, 4)");
  }
  Buffer many({2, 3, 4}, DType::f32), square({2, 3, 3}, DType::bf16);
  EXPECT_THROW(kernels::symmetric_product({}, {.c = c, .a = many}), Error);
  EXPECT_THROW(kernels::symmetric_product({}, {.c = square, .a = many}), Error);
}

}  // namespace
}  // namespace osprey
