#include "framework/config/numbers.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

TEST(Numbers, WholeNumbersMayBeWrittenWithUnderscoresPointsAndExponents) {
  EXPECT_EQ(parse_integer("4_194_304"), 4194304);
  EXPECT_EQ(parse_integer("1e9"), 1'000'000'000);
  EXPECT_EQ(parse_integer("1.0e11"), 100'000'000'000);
  EXPECT_EQ(parse_integer("1.5e1"), 15);
  EXPECT_EQ(parse_integer("-7"), -7);
  EXPECT_EQ(parse_integer("+7"), 7);
  EXPECT_EQ(parse_integer("9223372036854775807"), std::numeric_limits<int64_t>::max());
}

TEST(Numbers, WhatIsNoWholeNumberIsRefused) {
  for (const char* text :
       {"",     "1.5", "0x10", "1e", "e5",  "_1",  "1_",  "1__0", "1e-1",          "9223372036854775808",
        "1e19", "abc", "1 ",   " 1", "--1", "inf", "nan", ".",    "1e99999999999", "1_e5",
        "12a"})
    EXPECT_FALSE(parse_integer(text)) << text;
}

TEST(Numbers, RealsReadPlainDecimalsOnly) {
  EXPECT_EQ(parse_real("0.2"), 0.2);
  EXPECT_EQ(parse_real(".5"), 0.5);
  EXPECT_EQ(parse_real("5."), 5.0);
  EXPECT_EQ(parse_real("5.0e-4"), 5e-4);
  EXPECT_EQ(parse_real("-1E+3"), -1000.0);
  for (const char* text : {"inf", ".inf", "nan", ".nan", "1e999", "0x1p3", "1,5", "1e+", ""})
    EXPECT_FALSE(parse_real(text)) << text;
}

TEST(Numbers, FormattingIsShortAndReadsBackTheSameBits) {
  EXPECT_EQ(format_real(0.2), "0.2");
  EXPECT_EQ(format_real(1), "1.0");
  EXPECT_EQ(format_real(5e-4), "5.0e-4");
  EXPECT_EQ(format_real(1e11), "1.0e+11");
  EXPECT_THROW(format_real(std::nan("")), Error);
  int checked = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    const double value = std::bit_cast<double>(random_u64(7, 1, i));
    if (!std::isfinite(value) || (value != 0 && std::abs(value) < 1e-300)) continue;
    ++checked;
    ASSERT_EQ(std::bit_cast<uint64_t>(parse_real(format_real(value)).value()), std::bit_cast<uint64_t>(value))
        << value;
  }
  EXPECT_GT(checked, 10000);
}

TEST(Numbers, LimitsReadAsAPersonSaysThem) {
  EXPECT_EQ(describe(at_least(1)), "at least 1");
  EXPECT_EQ(describe(positive()), "more than 0");
  EXPECT_EQ(describe(between(0, 1)), "between 0 and 1");
  EXPECT_EQ(describe({}), "");
  EXPECT_FALSE(within(positive(), 0));
  EXPECT_TRUE(within(at_least(0), 0));
  EXPECT_FALSE(within(between(0, 1), 1.1));
  EXPECT_FALSE(within(at_least(0), std::nan("")));
}

}  // namespace
}  // namespace osprey
