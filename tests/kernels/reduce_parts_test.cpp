#include "kernels/reduce_parts.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/core/random.h"
#include "tests/support/device_copy.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::DeviceCopy;
using test::test_queue;

/// Of many magnitudes, so that another order of addition gives other bits.
template <class T>
T draw(uint64_t row, int64_t i) {
  const float v =
      std::ldexp(random_normal(3, row, static_cast<uint64_t>(i)), static_cast<int>((i * 7 + row) % 20));
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(v);
  else if constexpr (std::is_same_v<T, int32_t>)
    return static_cast<int32_t>(v * 0x1p28f / 0x1p20f) + std::numeric_limits<int32_t>::max() / 2;
  else
    return static_cast<T>(v);
}

float term(float v) { return v; }
float term(bf16 v) { return to_float(v); }
double term(double v) { return v; }
uint32_t term(int32_t v) { return static_cast<uint32_t>(v); }

/// Rows lie `gap` elements further apart than they are long, and begin `offset` elements behind an aligned
/// address.
template <class T, class Part>
void expect_sum(int64_t n, int rows, int own, int64_t gap, int64_t offset) {
  SCOPED_TRACE(fmt::format("{} elements, {} rows, own {}, gap {}, offset {}", n, rows, own, gap, offset));
  std::vector<T> data(static_cast<size_t>(n)), want(data.size());
  std::vector<Part> parts(static_cast<size_t>((n + gap) * rows));
  for (int64_t i = 0; i < n; ++i) {
    data[static_cast<size_t>(i)] = draw<T>(static_cast<uint64_t>(own), i);
    decltype(term(T{})) sum{};
    for (int r = 0; r < rows; ++r) {
      Part part = draw<Part>(static_cast<uint64_t>(r), i);
      const auto v = term(part);
      sum = r == 0 ? v : sum + v;
      if (r == own) part = Part{};  // a value that would show
      parts[static_cast<size_t>(r * (n + gap) + i)] = part;
    }
    std::memcpy(&want[static_cast<size_t>(i)], &sum, sizeof(T));
  }
  const DeviceCopy<T> d(data, offset);
  const DeviceCopy<Part> p(parts, offset);
  const Tensor rows_of_parts = p.tensor({rows, n + gap}).columns(0, n);
  kernels::reduce_parts(test_queue(), {.data = d.flat(), .parts = rows_of_parts, .own = own});
  const std::vector<T> got = d.values();
  EXPECT_TRUE(n == 0 || std::memcmp(got.data(), want.data(), got.size() * sizeof(T)) == 0);
  EXPECT_TRUE(d.guards_intact() && p.guards_intact());
}

template <class T, class Part>
void expect_sums() {
  for (const int rows : {1, 2, 3, 4, 5, 9})
    for (const int64_t n : {1, 7, 16, 67, 3000})
      for (const int64_t gap : {0, 8, 3}) expect_sum<T, Part>(n, rows, rows / 2, gap, gap == 8 ? 0 : gap);
  expect_sum<T, Part>(40'001, 4, 3, 16, 0);
}

TEST(ReduceParts, AddsFloatsInTheOrderOfRows) { expect_sums<float, float>(); }
TEST(ReduceParts, RoundsItsOwnPartAsTheOthersDid) { expect_sums<float, bf16>(); }
TEST(ReduceParts, AddsDoublesInDouble) { expect_sums<double, double>(); }
TEST(ReduceParts, IntegersWrap) { expect_sums<int32_t, int32_t>(); }

TEST(ReduceParts, RefusesWhatDoesNotFit) {
  const DeviceCopy<float> data(std::vector<float>(4)), parts(std::vector<float>(8));
  const DeviceCopy<bf16> halves(std::vector<bf16>(8));
  const auto why = [&](const Tensor& d, const Tensor& p, int own) {
    return test::refusal([&] { kernels::reduce_parts(test_queue(), {.data = d, .parts = p, .own = own}); });
  };
  EXPECT_NE(why(data.flat(), parts.tensor({4, 2}), 0).find("parts must be (R, 4)"), std::string::npos);
  EXPECT_NE(why(data.flat(), parts.tensor({2, 4}), 2).find("own must be a row"), std::string::npos);
  EXPECT_NE(why(halves.range(0, 4), halves.tensor({2, 4}), 0).find("bf16 parts to f32 data"),
            std::string::npos);
}

}  // namespace
}  // namespace osprey
