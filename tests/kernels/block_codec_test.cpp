#include "kernels/numerics/block_codec.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "tests/oracle/quantize.h"

using namespace osprey;

namespace {

constexpr Element elements[] = {Element::e2m1, Element::e2m3, Element::e3m2, Element::e4m3,
                                Element::e5m2, Element::int4, Element::int8};
constexpr ScaleRule power_rules[] = {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil};

float down(float v) { return std::nextafter(v, -INFINITY); }
float up(float v) { return std::nextafter(v, INFINITY); }

/// The same number, or both NaN; zeros of either sign are different.
bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

}  // namespace

TEST(BlockCodec, EveryCodeIsItsValueAndComesBack) {
  for (Element e : elements) {
    const std::vector<double> values = oracle::code_values(e);
    for (uint32_t code = 0; code < values.size(); ++code) {
      SCOPED_TRACE(fmt::format("element {} code {:#x}", static_cast<int>(e), code));
      const float v = decode_element(e, code);
      EXPECT_TRUE(same(v, values[code])) << v << " instead of " << values[code];
      if (!std::isfinite(values[code])) continue;
      const bool refused = std::abs(values[code]) > oracle::largest(e);  // -2 of the integers
      const uint32_t back = refused ? oracle::negated(e, oracle::positive_codes(e).back()) : code;
      EXPECT_EQ(encode_nearest(e, v), back);
      for (uint32_t draw : {0u, 1u, 128u, 255u}) EXPECT_EQ(encode_stochastic(e, v, draw), back);
    }
  }
}

TEST(BlockCodec, TheMostNegativeIntegerReadsAsMinusTwoAndIsNeverWritten) {
  EXPECT_EQ(decode_element(Element::int8, 0x80), -2.0f);
  EXPECT_EQ(decode_element(Element::int4, 0x8), -2.0f);
  for (float v : {-2.0f, -1.99f, -1e30f, -INFINITY}) {
    EXPECT_EQ(encode_nearest(Element::int8, v), 0x81u);
    EXPECT_EQ(encode_nearest(Element::int4, v), 0x9u);
    EXPECT_EQ(encode_stochastic(Element::int8, v, 255), 0x81u);
  }
}

TEST(BlockCodec, MidpointsGoToTheEvenCodeAndTheirNeighboursToTheNearest) {
  for (Element e : elements) {
    const std::vector<uint32_t> codes = oracle::positive_codes(e);
    for (size_t i = 0; i + 1 < codes.size(); ++i) {
      SCOPED_TRACE(fmt::format("element {} above code {:#x}", static_cast<int>(e), codes[i]));
      const float low = decode_element(e, codes[i]), high = decode_element(e, codes[i + 1]);
      const float middle = (low + high) / 2;  // exact
      const uint32_t even = codes[i] % 2 == 0 ? codes[i] : codes[i + 1];
      EXPECT_EQ(encode_nearest(e, middle), even);
      EXPECT_EQ(encode_nearest(e, down(middle)), codes[i]);
      EXPECT_EQ(encode_nearest(e, up(middle)), codes[i + 1]);
      EXPECT_EQ(encode_nearest(e, -middle), oracle::negated(e, even));
      EXPECT_EQ(encode_nearest(e, -down(middle)), oracle::negated(e, codes[i]));
      EXPECT_EQ(encode_nearest(e, -up(middle)), oracle::negated(e, codes[i + 1]));
      // Half of the draws go up; a quarter of the way, a quarter of them.
      EXPECT_EQ(encode_stochastic(e, middle, 127), codes[i]);
      EXPECT_EQ(encode_stochastic(e, middle, 128), codes[i + 1]);
      const float quarter = low + (high - low) / 4;
      EXPECT_EQ(encode_stochastic(e, -quarter, 191), oracle::negated(e, codes[i]));
      EXPECT_EQ(encode_stochastic(e, -quarter, 192), oracle::negated(e, codes[i + 1]));
    }
  }
}

TEST(BlockCodec, EveryBf16NumberIsRoundedAsASearchThroughAllCodesDoes) {
  for (Element e : elements)
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float v = to_float(bf16{static_cast<uint16_t>(bits)});
      if (std::isnan(v)) continue;
      ASSERT_EQ(encode_nearest(e, v), oracle::nearest_code(e, v))
          << "element " << static_cast<int>(e) << " of " << v;
    }
}

TEST(BlockCodec, DrawsOfStochasticRoundingAreUnbiasedForEveryDistance) {
  // All 256 draws: the mean is v to within 2^-9 of a step, and over many distances not off to one side.
  for (Element e : elements) {
    const std::vector<double> values = oracle::code_values(e);
    const std::vector<uint32_t> codes = oracle::positive_codes(e);
    double off = 0;
    constexpr int distances = 1000;
    for (int k = 0; k < distances; ++k) {
      const size_t i = static_cast<size_t>(k) * (codes.size() - 1) / distances;
      const double low = values[codes[i]], high = values[codes[i + 1]];
      const auto v = static_cast<float>(low + (high - low) * random_uniform(3, 4, static_cast<uint64_t>(k)));
      int64_t ups = 0;
      for (uint32_t draw = 0; draw < 256; ++draw) {
        const uint32_t code = encode_stochastic(e, v, draw);
        ASSERT_TRUE(code == codes[i] || code == codes[i + 1]);
        ups += code == codes[i + 1];
      }
      const double error = static_cast<double>(ups) / 256 - (v - low) / (high - low);
      EXPECT_LE(std::abs(error), 1.0 / 512 + 1e-6);
      off += error / distances;
    }
    EXPECT_LT(std::abs(off), 1.5e-4);  // deviation of a mean of 1000: 3.6e-5
  }
}

TEST(BlockCodec, KnownConversions) {
  // Values of OCP's and NVIDIA's converters (satfinite, nearest even).
  const auto all = [](Element e, const std::vector<std::pair<double, uint32_t>>& pairs) {
    for (const auto& [v, code] : pairs) EXPECT_EQ(encode_nearest(e, static_cast<float>(v)), code) << v;
  };
  all(Element::e4m3, {{0x1p-10, 0x00},
                      {0x3p-10, 0x02},
                      {0x1p-9, 0x01},
                      {0.0146484375, 0x08},
                      {1.0625, 0x38},
                      {1.1875, 0x3a},
                      {17, 0x58},
                      {19, 0x5a},
                      {248, 0x78},
                      {447, 0x7e},
                      {464, 0x7e},
                      {480, 0x7e}});
  all(Element::e5m2, {{0x1p-17, 0x00}, {0x3p-17, 0x02}, {1.125, 0x3c}, {1.375, 0x3e}, {61440, 0x7b}});
  all(Element::e2m3, {{.0625, 0x00},
                      {.1875, 0x02},
                      {1.0625, 0x08},
                      {1.9375, 0x10},
                      {2.125, 0x10},
                      {7.25, 0x1e},
                      {7.75, 0x1f}});
  all(Element::e3m2, {{.03125, 0x00}, {.09375, 0x02}, {.21875, 0x04}, {26, 0x1e}, {30, 0x1f}});
  all(Element::e2m1,
      {{.25, 0}, {.75, 2}, {1.25, 2}, {1.75, 4}, {2.5, 4}, {3.5, 6}, {5, 6}, {5.01, 7}, {9, 7}});
}

TEST(BlockCodec, EveryPowerOfTwoScaleHasAnExactReciprocal) {
  for (uint32_t code = 0; code < 255; ++code) {
    EXPECT_EQ(decode_e8m0(code), std::ldexp(1.0, static_cast<int>(code) - 127));
    EXPECT_EQ(reciprocal_e8m0(code), std::ldexp(1.0, 127 - static_cast<int>(code)));
  }
  EXPECT_TRUE(std::isnan(decode_e8m0(255)));
  EXPECT_TRUE(std::isnan(reciprocal_e8m0(255)));
}

TEST(BlockCodec, EverySmallFloatScaleComesBackThroughItsBlock) {
  for (uint32_t code = 1; code < 0x7f; ++code) {
    const float scale = decode_element(Element::e4m3, code);
    const BlockScale s = block_scale_e4m3(Element::e2m1, float_bits(6 * scale), {1, 1}, 1.0f);
    EXPECT_EQ(s.stored, code);
    EXPECT_EQ(s.inverse, 1 / scale);
  }
  EXPECT_EQ(block_scale_e4m3(Element::e2m1, 0, {1, 1}, 1.0f).stored, 0u);
  EXPECT_EQ(block_scale_e4m3(Element::e2m1, float_bits(0x1p-10f), {1, 1}, 1.0f).inverse, 0.0f) << "underflow";
  EXPECT_EQ(block_scale_e4m3(Element::e2m1, float_infinity, {1, 1}, 1.0f).stored, 0x7fu);
}

TEST(BlockCodec, SmallFloatScalesOfRuleRceilAreTheSmallestThatDoNotClip) {
  for (const Element e : {Element::e2m1, Element::int4}) {
    const float top = element_layout(e).largest;
    const TensorScale tensor = tensor_scale_of(e, ScaleRule::rceil, float_bits(3.7f));
    for (uint64_t i = 0; i < 4000; ++i) {
      const float size = 3.7f * std::ldexp(1 - static_cast<float>(philox(1, 2, i).v[0] % 4096) / 8192,
                                           -static_cast<int>(i % 24));
      const BlockScale s = block_scale_e4m3_up(e, float_bits(size), tensor);
      const auto fits = [&](uint32_t code) { return size * inverse_e4m3(code, tensor.down) <= top; };
      uint32_t smallest = 1;
      while (smallest < 0x7e && !fits(smallest)) ++smallest;
      ASSERT_EQ(s.stored, smallest) << size;
      ASSERT_EQ(s.inverse, inverse_e4m3(smallest, tensor.down));
    }
    const BlockScale largest = block_scale_e4m3_up(e, float_bits(3.7f), tensor);
    EXPECT_EQ(largest.stored, 0x7eu);
    EXPECT_LE(3.7f * largest.inverse, top * (1 + 0x1p-22f));
  }
  EXPECT_EQ(block_scale_e4m3_up(Element::e2m1, 0, {1, 1}).stored, 0u);
  EXPECT_EQ(block_scale_e4m3_up(Element::e2m1, float_bits(0x1p-30f), {1, 1}).stored, 1u) << "no underflow";
  EXPECT_EQ(block_scale_e4m3_up(Element::e2m1, float_infinity, {1, 1}).stored, 0x7fu);
  EXPECT_TRUE(std::isnan(block_scale_e4m3_up(Element::e2m1, float_nan, {1, 1}).inverse));
}

TEST(BlockCodec, PowerOfTwoScalesFollowTheirRulesAtEveryBoundary) {
  // Around every power of two: the power itself, its neighbours, and mantissas on either side of where some
  // rule and element changes its mind.
  std::vector<uint32_t> mantissas = {0, 1, 0x7fffff};
  for (int bit = 16; bit <= 22; ++bit)  // `even` of each element
    for (uint32_t around : {0u, 1u, 2u}) mantissas.push_back(0x800000u - (1u << bit) + around - 1);
  for (Element e : elements) {  // `rceil` of each element
    const uint32_t mantissa = float_bits(static_cast<float>(oracle::largest(e))) & 0x7fffffu;
    for (uint32_t i = 0; i < 5; ++i) mantissas.push_back((mantissa + i - 2) & 0x7fffffu);
  }
  for (Element e : elements)
    for (ScaleRule rule : power_rules)
      for (uint32_t exponent = 0; exponent < 255; ++exponent)
        for (uint32_t mantissa : mantissas) {
          const uint32_t a = exponent << 23 | mantissa;
          ASSERT_EQ(e8m0_of_largest(e, rule, a), oracle::scale_code(e, rule, bits_float(a)))
              << "element " << static_cast<int>(e) << " rule " << static_cast<int>(rule) << " of "
              << bits_float(a);
        }
}

TEST(BlockCodec, BlocksOfZerosAndOfNoNumbersHaveTheirOwnScales) {
  for (Element e : elements) {
    for (ScaleRule rule : power_rules) {
      EXPECT_EQ(e8m0_of_largest(e, rule, 0), 0u);
      EXPECT_EQ(e8m0_of_largest(e, rule, float_infinity), 255u);
      EXPECT_EQ(e8m0_of_largest(e, rule, float_nan), 255u);
    }
    EXPECT_EQ(block_scale_f32(e, 0).stored, 0u);
    EXPECT_TRUE(std::isnan(bits_float(block_scale_f32(e, float_nan).stored)));
  }
  EXPECT_EQ(e8m0_of_deviation(0, 32, 0, 0), 0u);
  EXPECT_EQ(e8m0_of_deviation(float_infinity, 32, 0, 0), 255u);
}

TEST(BlockCodec, CeilAndRceilNeverClip) {
  for (Element e : elements)
    for (uint32_t i = 0; i < 20000; ++i) {
      const uint32_t a = philox(1, 2, i).v[0] % 0x7e000000u + 1;  // the topmost binades are clamped
      for (ScaleRule rule : {ScaleRule::ceil, ScaleRule::rceil}) {
        const uint32_t code = e8m0_of_largest(e, rule, a);
        // a quotient in fp32 may be rounded down to a power of two
        ASSERT_LE(static_cast<double>(bits_float(a)) / std::ldexp(1.0, static_cast<int>(code) - 127),
                  oracle::largest(e) * (rule == ScaleRule::rceil ? 1 + 0x1p-22 : 1) + 1e-9);
      }
    }
}

TEST(BlockCodec, Mxfp4NumbersAreNormalBf16Numbers) {
  for (ScaleRule rule : power_rules)
    for (uint32_t exponent = 0; exponent < 255; ++exponent)
      for (uint32_t mantissa : {0u, 0x300000u, 0x7fffffu}) {
        const uint32_t code = e8m0_of_largest(Element::e2m1, rule, exponent << 23 | mantissa);
        if (code == 0) continue;  // zeros
        for (uint32_t element = 1; element < 8; ++element) {
          const float v = decode_element(Element::e2m1, element) * decode_e8m0(code);
          ASSERT_EQ(to_float(to_bf16(v)), v);
          ASSERT_TRUE(std::isnormal(v));
        }
      }
}

TEST(BlockCodec, TheDeviationsScaleIsRoundedInItsExponent) {
  for (int k = 0; k < 4000; ++k) {
    float v[32];
    double sum = 0, squares = 0;
    uint32_t most = 0;
    const double size = std::exp2(0.01 * k - 20), mean = k % 3;
    for (uint64_t i = 0; i < 32; ++i) {
      v[i] = static_cast<float>(size * (random_normal(5, static_cast<uint64_t>(k), i) + mean));
      sum += v[i];
      squares += static_cast<double>(v[i]) * v[i];
      most = std::max(most, magnitude_bits(v[i]));
    }
    const double variance =
        std::max(squares / 32 - sum / 32 * (sum / 32), squares / 32 / 4);  // never all mean and no deviation
    const double log2 = std::log2(0.48707976 * std::sqrt(variance));
    const int unit = unit_exponent(most);
    int64_t units = 0, square_units = 0;
    for (float x : v) {
      const int64_t n = in_units(x, unit);
      units += n;
      square_units += n * n;
    }
    const uint32_t code = e8m0_of_deviation(most, 32, units, square_units);
    if (std::abs(log2 - std::floor(log2) - 0.5) < 1e-4) continue;  // units are a little coarser
    EXPECT_EQ(static_cast<int>(code) - 127, static_cast<int>(std::floor(log2 + 0.5))) << k;
  }
}

TEST(BlockCodec, EqualValuesSurviveTheDeviationsScale) {
  const float v = 0.7f;
  const int unit = unit_exponent(float_bits(v));
  const int64_t n = in_units(v, unit);
  const float scale = decode_e8m0(e8m0_of_deviation(float_bits(v), 32, 32 * n, 32 * n * n));
  EXPECT_LE(v, 6 * scale);
  EXPECT_GE(v, scale);
}

TEST(BlockCodec, TheTensorScaleIsBoundedAndOneForZeros) {
  EXPECT_EQ(tensor_scale_of(Element::e2m1, ScaleRule::even, 0).up, 1.0f);
  EXPECT_EQ(tensor_scale_of(Element::e2m1, ScaleRule::even, float_bits(4.0f)).up, 672.0f);
  EXPECT_EQ(tensor_scale_of(Element::e2m1, ScaleRule::four_over_six, float_bits(4.0f)).up, 384.0f);
  EXPECT_EQ(tensor_scale_of(Element::e2m1, ScaleRule::rceil, float_bits(4.0f)).up, 672.0f);
  EXPECT_EQ(tensor_scale_of(Element::e2m1, ScaleRule::even, 1).up, float_largest);
  EXPECT_GT(tensor_scale_of(Element::e2m1, ScaleRule::even, 1).down, 0.0f);
}
