#include "kernels/symmetric_product.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/core/random.h"

namespace osprey {
namespace {

template <class T>
void check(int64_t m, int64_t k, float beta, double tolerance) {
  std::vector<T> a(static_cast<size_t>(m * k)), c(static_cast<size_t>(m * m));
  for (size_t i = 0; i < a.size(); ++i) a[i] = Convert<T>::from(random_normal(1, 1, i));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      c[static_cast<size_t>(i * m + j)] =
          Convert<T>::from(beta == 0 ? NAN : random_normal(1, 2, static_cast<uint64_t>(i * j + i + j)));
  const std::vector<T> before = c;
  const DType dtype = DTypeOf<T>::value;
  std::vector<T> alone = before;
  for (const auto& [result, threads] : {std::pair{&c, 2}, std::pair{&alone, 1}})
    kernels::symmetric_product({.device = {}, .threads = threads},
                               {.c = make_tensor(result->data(), {m, m}, dtype),
                                .a = make_tensor(a.data(), {m, k}, dtype),
                                .alpha = 0.5f,
                                .beta = beta});
  EXPECT_EQ(std::memcmp(c.data(), alone.data(), c.size() * sizeof(T)), 0)
      << "the result depends on the number of threads";
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) {
      double dot = 0, size = 0;
      for (int64_t l = 0; l < k; ++l) {
        const double x = to_float(a[static_cast<size_t>(i * k + l)]),
                     y = to_float(a[static_cast<size_t>(j * k + l)]);
        dot += x * y;
        size += std::abs(x * y);
      }
      const size_t at = static_cast<size_t>(i * m + j);
      const double wanted = 0.5 * dot + (beta == 0 ? 0 : beta * to_float(before[at]));
      ASSERT_NEAR(to_float(c[at]), wanted, tolerance * (std::abs(wanted) + 1e-4 * size)) << i << ", " << j;
      if (std::abs(i - j) >= 128) {
        ASSERT_EQ(to_float(c[at]), to_float(c[static_cast<size_t>(j * m + i)]));
      }
    }
}

TEST(SymmetricProduct, AgreesWithDoubleOnEveryBlock) {
  for (const auto& [m, k] : {std::pair<int64_t, int64_t>{1, 3}, {127, 40}, {128, 64}, {300, 96}, {131, 2111}})
    for (float beta : {0.0f, -1.5f}) {
      check<float>(m, k, beta, 2e-3);
      check<bf16>(m, k, beta, 5e-3);
    }
}

TEST(SymmetricProduct, WrongShapesAreNamed) {
  std::vector<float> a(12), c(16);
  try {
    kernels::symmetric_product(
        {}, {.c = make_tensor(c.data(), {4, 4}, DType::f32), .a = make_tensor(a.data(), {3, 4}, DType::f32)});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[symmetric_product] c must be (3, 3), got (4, 4)");
  }
}

}  // namespace
}  // namespace osprey
