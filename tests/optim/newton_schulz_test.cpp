#include "optim/newton_schulz.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/core/random.h"
#include "tests/oracle/muon.h"
#include "tests/support/device_copy.h"

namespace osprey {
namespace {

using oracle::Dense;

constexpr NewtonSchulz methods[] = {NewtonSchulz::keller, NewtonSchulz::polar_express};

Dense draw(size_t rows, size_t cols, uint64_t stream) {
  Dense x(rows, cols);
  for (size_t i = 0; i < x.v.size(); ++i) x.v[i] = random_normal(5, stream, i);
  return x;
}

// Rows are orthonormal (Gram-Schmidt, twice).
Dense orthonormal_rows(size_t rows, size_t cols, uint64_t stream) {
  Dense q = draw(rows, cols, stream);
  for (size_t r = 0; r < rows; ++r) {
    for (int twice = 0; twice < 2; ++twice)
      for (size_t s = 0; s < r; ++s) {
        double dot = 0;
        for (size_t c = 0; c < cols; ++c) dot += q(r, c) * q(s, c);
        for (size_t c = 0; c < cols; ++c) q(r, c) -= dot * q(s, c);
      }
    double length = 0;
    for (size_t c = 0; c < cols; ++c) length += q(r, c) * q(r, c);
    for (size_t c = 0; c < cols; ++c) q(r, c) /= std::sqrt(length);
  }
  return q;
}

// A (sigma.size(), n) matrix with these singular values.
Dense with_singular_values(const std::vector<double>& sigma, size_t n) {
  Dense left = orthonormal_rows(sigma.size(), sigma.size(), 1), right = orthonormal_rows(sigma.size(), n, 2);
  for (size_t r = 0; r < sigma.size(); ++r)
    for (size_t c = 0; c < n; ++c) right(r, c) *= sigma[r];
  return oracle::product(left, right);
}

// Singular values spread evenly in the logarithm, whose smallest is `smallest` after division by the
// Frobenius norm and the safety factor.
std::vector<double> spread(size_t count, double smallest) {
  std::vector<double> sigma(count);
  double ratio = smallest;
  for (int round = 0; round < 50; ++round) {
    double squares = 0;
    for (size_t i = 0; i < count; ++i) {
      sigma[i] = std::pow(ratio, static_cast<double>(i) / static_cast<double>(count - 1));
      squares += sigma[i] * sigma[i];
    }
    ratio = smallest * 1.02 * std::sqrt(squares);
  }
  return sigma;
}

template <class T>
std::vector<Dense> run_as(const std::vector<Dense>& xs, NewtonSchulz method, int steps, int threads) {
  const auto batch = static_cast<int64_t>(xs.size()), m = static_cast<int64_t>(xs[0].rows),
             n = static_cast<int64_t>(xs[0].cols);
  const auto elements = static_cast<size_t>(NewtonSchulzBuffers::elements(batch, m, n));
  const test::DeviceCopy<T> memory(std::vector<T>(elements, Convert<T>::from(NAN)));
  const NewtonSchulzBuffers buffers =
      NewtonSchulzBuffers::cut(memory.flat().data, batch, m, n, DTypeOf<T>::value, test::test_device());
  std::vector<T> values;
  for (const Dense& x : xs) {
    const double length = oracle::norm(x) * newton_schulz_safety(method);
    for (double e : x.v) values.push_back(Convert<T>::from(static_cast<float>(length > 0 ? e / length : 0)));
  }
  const Queue queue = test::test_queue(threads);
  kernels::upload(queue, buffers.x, values.data());
  kernels::download(queue, values.data(), newton_schulz(queue, buffers, method, steps));
  EXPECT_TRUE(memory.guards_intact());
  std::vector<Dense> out(xs.size(), Dense(xs[0].rows, xs[0].cols));
  for (size_t i = 0; i < values.size(); ++i)
    out[i / xs[0].v.size()].v[i % xs[0].v.size()] = static_cast<double>(to_float(values[i]));
  return out;
}

// The framework's Newton-Schulz on each of xs, normalised with the method's safety factor, in one batch.
std::vector<Dense> run(const std::vector<Dense>& xs, NewtonSchulz method, int steps, DType dtype,
                       int threads = 2) {
  return dtype == DType::bf16 ? run_as<bf16>(xs, method, steps, threads)
                              : run_as<float>(xs, method, steps, threads);
}
Dense run(const Dense& x, NewtonSchulz method, int steps, DType dtype, int threads = 2) {
  return run(std::vector<Dense>{x}, method, steps, dtype, threads)[0];
}

double scalar(NewtonSchulz method, int steps, double sigma) {
  for (int i = 0; i < steps; ++i) {
    const Quintic q = newton_schulz_step(method, i);
    sigma = sigma * (q.a + q.b * sigma * sigma + q.c * sigma * sigma * sigma * sigma);
  }
  return sigma;
}

TEST(NewtonSchulz, ScalarRangesAreThePublishedOnes) {
  double keller_low = 9, keller_high = 0, polar_low = 9, polar_high = 0;
  for (double s = 1e-3; s <= 1; s *= 1.0005) {
    const double keller = scalar(NewtonSchulz::keller, 5, s),
                 polar = scalar(NewtonSchulz::polar_express, 5, s);
    if (s >= 1e-2) keller_low = std::min(keller_low, keller), keller_high = std::max(keller_high, keller);
    polar_low = std::min(polar_low, polar), polar_high = std::max(polar_high, polar);
  }
  EXPECT_NEAR(keller_low, 0.68, 0.01);
  EXPECT_NEAR(keller_high, 1.13, 0.01);
  EXPECT_NEAR(polar_low, 0.85, 0.01);
  EXPECT_NEAR(polar_high, 1.14, 0.01);
  EXPECT_NEAR(scalar(NewtonSchulz::keller, 5, 1e-9) / 1e-9, 485, 1);  // the slope at zero
  EXPECT_NEAR(scalar(NewtonSchulz::polar_express, 5, 1e-9) / 1e-9, 990, 1);
}

TEST(NewtonSchulz, TheOrderOfThePolarExpressStepsMatters) {
  double high = 0;
  for (double s = 1e-3; s <= 1; s *= 1.001) {
    double sigma = s;
    for (int i = 4; i >= 0; --i) {
      const Quintic q = newton_schulz_step(NewtonSchulz::polar_express, i);
      sigma = sigma * (q.a + q.b * sigma * sigma + q.c * sigma * sigma * sigma * sigma);
    }
    high = std::max(high, std::abs(sigma));
  }
  EXPECT_GT(high, 1.5);
  EXPECT_THROW(newton_schulz_step(NewtonSchulz::polar_express, 5), Error);
}

TEST(NewtonSchulz, SingularValuesEndUpInTheirRangesAndNotAtOne) {
  for (NewtonSchulz method : methods) {
    const bool keller = method == NewtonSchulz::keller;
    const double low = keller ? 0.68 : 0.85, high = keller ? 1.13 : 1.14;
    const Dense x = with_singular_values(spread(48, keller ? 1.05e-2 : 1.05e-3), 80);
    for (DType dtype : {DType::f32, DType::bf16}) {
      const std::vector<double> after = oracle::singular_values(run(x, method, 5, dtype));
      const std::string what = std::string(name(method)) + " " + name(dtype) + ": " +
                               std::to_string(after.back()) + " to " + std::to_string(after.front());
      const double slack = dtype == DType::bf16 ? 0.02 : 0.01;
      EXPECT_GT(after.back(), low - slack) << what;
      EXPECT_LT(after.front(), high + slack) << what;
      EXPECT_GT(after.front() - after.back(), 0.1) << what << ": an orthogonal matrix was not expected";
    }
  }
}

TEST(NewtonSchulz, FollowsTheDoubleIteration) {
  for (NewtonSchulz method : methods)
    for (const auto& [m, n] : {std::pair<size_t, size_t>{5, 5}, {33, 65}, {130, 150}}) {
      const Dense x = draw(m, n, 7), wanted = oracle::newton_schulz(x, method, 5);
      for (DType dtype : {DType::f32, DType::bf16}) {
        Dense difference = run(x, method, 5, dtype);
        for (size_t i = 0; i < wanted.v.size(); ++i) difference.v[i] -= wanted.v[i];
        EXPECT_LT(oracle::norm(difference) / oracle::norm(wanted), dtype == DType::bf16 ? 0.03 : 1e-4)
            << name(method) << " " << name(dtype) << " " << m << " x " << n;
      }
    }
}

TEST(NewtonSchulz, DoesNotDependOnThreads) {
  const Dense x = draw(300, 520, 8);
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Dense one = run(x, NewtonSchulz::polar_express, 5, dtype, 1);
    EXPECT_EQ(one.v, run(x, NewtonSchulz::polar_express, 5, dtype, 2).v) << name(dtype);
    EXPECT_EQ(one.v, run(x, NewtonSchulz::polar_express, 5, dtype, 3).v) << name(dtype);
  }
}

TEST(NewtonSchulz, ABatchIsItsMatrices) {
  // Odd sizes too: then the matrices of a batch do not begin at aligned addresses.
  for (const auto& [m, n] : {std::pair<size_t, size_t>{64, 96}, {33, 65}, {7, 7}})
    for (DType dtype : {DType::f32, DType::bf16}) {
      std::vector<Dense> xs;
      for (uint64_t i = 0; i < 3; ++i) xs.push_back(draw(m, n, 20 + i));
      const std::vector<Dense> together = run(xs, NewtonSchulz::polar_express, 5, dtype);
      for (size_t i = 0; i < xs.size(); ++i)
        EXPECT_EQ(together[i].v, run(xs[i], NewtonSchulz::polar_express, 5, dtype).v)
            << name(dtype) << " " << m << " x " << n;
    }
}

TEST(NewtonSchulz, ZeroStaysZeroAndMissingRankStaysMissing) {
  for (NewtonSchulz method : methods) {
    for (double e : run(Dense(20, 30), method, 5, DType::bf16).v) EXPECT_EQ(e, 0);
    // Rank 3 of 20: three values near one, and seventeen that are the rounding of nothing.
    const Dense low_rank = oracle::product(draw(20, 3, 9), draw(3, 30, 10));
    const std::vector<double> after = oracle::singular_values(run(low_rank, method, 5, DType::f32));
    EXPECT_GT(after[2], 0.68 - 0.01);
    EXPECT_LT(after[0], 1.14 + 0.01);
    EXPECT_LT(after[3], 1e-2);
  }
}

TEST(NewtonSchulz, TallMatricesAreRefusedWithTheCure) {
  const test::DeviceCopy<float> memory(std::vector<float>(4096));
  const NewtonSchulzBuffers buffers =
      NewtonSchulzBuffers::cut(memory.flat().data, 1, 8, 4, DType::f32, test::test_device());
  EXPECT_THROW(newton_schulz(test::test_queue(), buffers, NewtonSchulz::keller, 5), Error);
}

}  // namespace
}  // namespace osprey
