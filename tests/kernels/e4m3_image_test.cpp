#include "kernels/e4m3_image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/numerics/bf16_image.h"
#include "kernels/numerics/e4m3_image.h"
#include "tests/support/block_problem.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::DeviceCopy;
using test::OnDevice;
using test::Spread;

constexpr int most_exponent = 54;  // of an image

/// Whether E4M3 has the number, by enumeration.
bool in_e4m3(double v) {
  static const std::vector<double> values = [] {
    std::vector<double> all;
    for (double x : oracle::enumerate_codes(Element::e4m3))
      if (!std::isnan(x)) all.push_back(x);
    std::sort(all.begin(), all.end());
    return all;
  }();
  return std::binary_search(values.begin(), values.end(), v);
}

/// Whether one power of two brings all numbers of a row into E4M3, by trying all.
bool has_image(const std::vector<double>& row) {
  for (int exponent = -most_exponent; exponent <= most_exponent; ++exponent)
    if (std::all_of(row.begin(), row.end(), [&](double v) { return in_e4m3(std::ldexp(v, -exponent)); }))
      return true;
  return false;
}

const std::vector<double>& e2m1() {
  static const std::vector<double> values = oracle::enumerate_codes(Element::e2m1);
  return values;
}
const std::vector<double>& e4m3() {
  static const std::vector<double> values = oracle::enumerate_codes(Element::e4m3);
  return values;
}

TEST(E4m3Numerics, EveryMagnitudeAtEveryScaleIsExactWhereE4m3HasIt) {
  int held = 0;
  for (uint32_t m = 0; m < 8; ++m)
    for (int shift = -300; shift <= 300; ++shift) {
      const double want = std::ldexp(e2m1()[m], shift);
      if (!in_e4m3(want)) continue;
      ASSERT_EQ(e4m3()[e4m3_of_e2m1(m, shift)], want) << m << " at 2^" << shift;
      held += m > 0;
    }
  // With the lowest bit at 2^-9 to the highest at 2^8: four magnitudes of one bit, three of two.
  EXPECT_EQ(held, 4 * 18 + 3 * 17);
}

TEST(E4m3Numerics, FourCodesAreFourTimesOne) {
  for (uint32_t scale = 119; scale <= 133; ++scale) {
    const E4m3Table table = e4m3_table(scale, 0);
    for (uint32_t codes = 0; codes < 1u << 16; codes += codes < 4096 ? 1 : 257) {
      const uint32_t four = e4m3_four(table, codes | 0xabcd0000u);
      for (uint32_t i = 0; i < 4; ++i) {
        const double want = std::ldexp(e2m1()[codes >> (4 * i) & 15], static_cast<int>(scale) - 127);
        ASSERT_EQ(e4m3()[four >> (8 * i) & 255], want) << codes;
      }
    }
  }
}

TEST(E4m3Numerics, WhatABlockTakesUpIsThatOfItsNumbers) {
  for (uint32_t seen = 0; seen < 256; ++seen)
    for (const uint32_t scale : {0u, 1u, 100u, 127u, 254u}) {
      int top = -5000, low = 5000;
      for (uint32_t m = 1; m < 8; ++m) {
        if ((seen >> m & 1) == 0) continue;
        const double v = std::ldexp(e2m1()[m], static_cast<int>(scale) - 127);
        int bit = std::ilogb(v);
        top = std::max(top, bit);
        while (std::fmod(v, std::ldexp(1.0, bit)) != 0) --bit;
        while (std::fmod(v, std::ldexp(1.0, bit + 1)) == 0) ++bit;
        low = std::min(low, bit);
      }
      const Extent got = e2m1_extent(seen, scale);
      if (top < low) {
        ASSERT_LT(got.top, got.low);
        continue;
      }
      ASSERT_EQ(got.top, top) << seen << " " << scale;
      ASSERT_EQ(got.low, low) << seen << " " << scale;
    }
}

// All pairs of numbers whose scales differ by anything: the bound is exact, and by scales alone it is 2^14.
TEST(E4m3Numerics, ARowIsWideIfAndOnlyIfNoPowerOfTwoBringsItIntoE4m3) {
  bool all_at[40] = {};
  std::fill(std::begin(all_at), std::end(all_at), true);
  for (uint32_t m1 = 1; m1 < 8; ++m1)
    for (uint32_t m2 = 1; m2 < 8; ++m2)
      for (uint32_t apart = 0; apart < 40; ++apart)
        for (const uint32_t scale : {60u, 127u, 170u, 191u, 193u}) {
          const Extent extent = joined(e2m1_extent(1u << m1, scale), e2m1_extent(1u << m2, scale - apart));
          const auto number = [&](uint32_t m, uint32_t s) {
            return std::ldexp(e2m1()[m], static_cast<int>(s) - 127);
          };
          const RowImage image = row_image(extent, false);
          const bool want = has_image({number(m1, scale), number(m2, scale - apart)});
          ASSERT_EQ(!image.wide, want) << m1 << " " << m2 << " " << apart << " " << scale;
          if (scale == 127) all_at[apart] = all_at[apart] && want;
          if (image.wide) continue;
          ASSERT_EQ(e4m3()[e4m3_of_e2m1(m1, static_cast<int>(scale) - 127 - image.exponent)] *
                        std::ldexp(1.0, image.exponent),
                    number(m1, scale));
          ASSERT_EQ(e4m3()[e4m3_of_e2m1(m2, static_cast<int>(scale - apart) - 127 - image.exponent)] *
                        std::ldexp(1.0, image.exponent),
                    number(m2, scale - apart));
        }
  for (int apart = 0; apart <= 14; ++apart) EXPECT_TRUE(all_at[apart]) << apart;
  EXPECT_FALSE(all_at[15]);
  EXPECT_TRUE(row_image(joined(e2m1_extent(0xff, 127), no_extent), true).wide);
  EXPECT_FALSE(row_image(no_extent, false).wide);
}

TEST(Bf16Numerics, ImagesAreExactForEveryCodeAndScale) {
  for (const Element e : {Element::e2m1, Element::int4, Element::int8})
    for (const ScaleType s : {ScaleType::e8m0, ScaleType::e4m3}) {
      if (!has_bf16_image(e, s)) continue;
      const std::vector<double> elements = oracle::enumerate_codes(e);
      for (uint32_t stored = 0; stored < (s == ScaleType::e8m0 ? 255u : 127u); ++stored) {
        const double scale =
            s == ScaleType::e8m0 ? std::ldexp(1.0, static_cast<int>(stored) - 127) : e4m3()[stored];
        for (uint32_t code = 0; code < elements.size(); ++code) {
          const float f = bf16_image_scale(e, s, decode_scale(s, stored));
          const bf16 image = to_bf16(bf16_image(e, code | 0x1500u, f));
          if (e == Element::int8 && code == 128 && stored == 254) continue;  // no fp32 number either
          ASSERT_EQ(std::ldexp(static_cast<double>(to_float(image)), -bf16_image_shift(e, s)),
                    elements[code] * scale)
              << static_cast<int>(e) << " " << stored << " " << code;
          ASSERT_TRUE(std::isfinite(to_float(image)));
        }
      }
    }
  EXPECT_FALSE(has_bf16_image(Element::int8, ScaleType::e4m3));
  EXPECT_FALSE(has_bf16_image(Element::e4m3, ScaleType::e8m0));
}

/// A sum of products as Hopper's FP8 tensor cores are said to form it: 32 at a time are aligned with the
/// largest of them and of the sum so far, and cut off below its 13th bit; every `steps` times the sum moves
/// on to fp32.
double hopper_sum(const std::vector<double>& products, size_t steps) {
  float total = 0;
  double sum = 0;
  for (size_t i = 0; i < products.size(); i += 32) {
    double largest = std::fabs(sum);
    for (size_t j = i; j < i + 32; ++j) largest = std::max(largest, std::fabs(products[j]));
    if (largest > 0) {
      const double unit = std::ldexp(1.0, std::ilogb(largest) - 13);
      sum = std::trunc(sum / unit) * unit;
      for (size_t j = i; j < i + 32; ++j) sum += std::trunc(products[j] / unit) * unit;
    }
    if ((i / 32 + 1) % steps == 0 || i + 32 == products.size()) {
      total += static_cast<float>(sum);
      sum = 0;
    }
  }
  return static_cast<double>(total);
}

/// The largest error of such sums over rows of two matrices, as a share of sum |a||b|.
double hopper_share(const test::BlockMatrix& a, const test::BlockMatrix& b, size_t steps) {
  double most = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j) {
      std::vector<double> products;
      double sum = 0, size = 0;
      for (int64_t k = 0; k < a.cols; ++k) {
        products.push_back(e2m1()[a.code(i, k)] * a.scale(i, k) * e2m1()[b.code(j, k)] * b.scale(j, k));
        sum += products.back();
        size += std::fabs(products.back());
      }
      most = std::max(most, std::fabs(hopper_sum(products, steps) - sum) / size);
    }
  return most;
}

// What kernels/block_matmul.h allows FP8 sums to be off by, against that model of them: with codes of every
// magnitude and scales that differ by up to 2^3 and by up to 2^9.
TEST(E4m3Numerics, TheSlackCoversAModelOfSumsOfFourteenBits) {
  const BlockFormat& f = block_format("mxfp4");
  for (const Spread spread : {Spread::narrow, Spread::some}) {
    const test::BlockMatrix a(f, 12, 4096, 1, spread), b(f, 12, 4096, 2, spread, true);
    const double careful = hopper_share(a, b, 4), fast = hopper_share(a, b, 128);
    EXPECT_LT(careful, kernels::e4m3_slack);
    EXPECT_LT(fast, 8 * kernels::e4m3_slack);
    EXPECT_GT(fast, careful);
  }
  // The worst case: one product, and behind it 127 that are each cut off whole.
  std::vector<double> products(128, std::ldexp(1.0, -13) * 0.75);
  products[0] = 1;
  EXPECT_EQ(hopper_sum(products, 4), 1);
}

struct Images {
  Images(const Packed& x, int64_t padding)
      : codes(std::vector<uint8_t>(static_cast<size_t>(x.rows * (x.cols + padding)), 0xa5)),
        scales(std::vector<float>(static_cast<size_t>(x.rows), NAN)),
        wide(std::vector<int32_t>(static_cast<size_t>(x.rows), -1)) {
    OnDevice on(3);
    kernels::e4m3_image(on.queue, {.codes = codes.tensor({x.rows, x.cols + padding}).columns(0, x.cols),
                                   .scales = scales.flat(),
                                   .wide = wide.flat(),
                                   .x = x});
  }
  DeviceCopy<uint8_t> codes;
  DeviceCopy<float> scales;
  DeviceCopy<int32_t> wide;
};

TEST(E4m3Image, IsTheRowOrTheRowIsWide) {
  const BlockFormat& f = block_format("mxfp4");
  int wide_rows = 0, others = 0;
  for (const Spread spread : {Spread::narrow, Spread::some, Spread::wide, Spread::any})
    for (const auto& [rows, cols, padding] :
         {std::array<int64_t, 3>{1, 32, 0}, {7, 96, 5}, {33, 1056, 0}, {70, 64, 16}}) {
      SCOPED_TRACE(
          fmt::format("{} x {} padding {} spread {}", rows, cols, padding, static_cast<int>(spread)));
      const test::BlockMatrix x(f, rows, cols, 1, spread);
      const test::PackedOnDevice on_device(x, padding);
      const Images images(on_device, padding);
      const std::vector<uint8_t> codes = images.codes.values();
      const std::vector<float> scales = images.scales.values();
      const std::vector<int32_t> wide = images.wide.values();
      for (int64_t r = 0; r < rows; ++r) {
        std::vector<double> row;
        for (int64_t i = 0; i < cols; ++i) row.push_back(e2m1()[x.code(r, i)] * x.scale(r, i));
        const auto at = static_cast<size_t>(r);
        ASSERT_EQ(wide[at], has_image(row) ? 0 : 1) << r;
        (wide[at] ? wide_rows : others) += 1;
        for (int64_t i = 0; i < cols; ++i) {
          const uint8_t code = codes[static_cast<size_t>(r * (cols + padding) + i)];
          const double number = e4m3()[code] * static_cast<double>(scales[at]);
          ASSERT_EQ(number, wide[at] ? 0.0 : row[static_cast<size_t>(i)]) << r << ", " << i;
        }
        if (wide[at]) {
          ASSERT_EQ(scales[at], 1.0f);
        }
        for (int64_t i = cols; i < cols + padding; ++i)
          ASSERT_EQ(codes[static_cast<size_t>(r * (cols + padding) + i)], 0xa5) << "written between rows";
      }
      EXPECT_TRUE(images.codes.guards_intact() && images.scales.guards_intact() &&
                  images.wide.guards_intact());
    }
  EXPECT_GT(wide_rows, 50);
  EXPECT_GT(others, 100);
}

TEST(E4m3Image, RowsOfZerosHaveOneAndRowsWithNaNAreWide) {
  test::BlockMatrix x(block_format("mxfp4"), 3, 64, 1, Spread::narrow);
  std::fill_n(x.codes.begin(), 64, uint8_t{0x80});  // zeros of both signs, whatever their scales
  x.scales[0] = 0;
  x.scales[1] = 254;
  x.scales[3] = 255;
  const test::PackedOnDevice on_device(x);
  const Images images(on_device, 0);
  EXPECT_EQ(images.wide.values(), (std::vector<int32_t>{0, 1, 0}));
  EXPECT_EQ(images.scales[0], 1.0f);
}

TEST(E4m3Image, WhatDoesNotFitIsNamed) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "checked before a device is chosen";
  const test::BlockMatrix x(block_format("mxfp4"), 3, 64, 1, Spread::narrow),
      other(block_format("mxint4"), 3, 64, 1, Spread::narrow);
  const test::PackedOnDevice x_device(x), other_device(other);
  DeviceCopy<uint8_t> codes(std::vector<uint8_t>(192));
  DeviceCopy<float> scales(std::vector<float>(3));
  DeviceCopy<int32_t> wide(std::vector<int32_t>(3));
  const auto message = [&](const Packed& p, const Tensor& c, const Tensor& s, const Tensor& w) {
    return test::refusal([&] { kernels::e4m3_image({}, {.codes = c, .scales = s, .wide = w, .x = p}); });
  };
  const Tensor c = codes.tensor({3, 64}), s = scales.flat(), w = wide.flat();
  EXPECT_EQ(message(x_device, c, s, w), "accepted");
  EXPECT_EQ(message(other_device, c, s, w), "[e4m3_image] x must be mxfp4, got mxint4");
  EXPECT_NE(message(x_device, codes.tensor({64, 3}), s, w).find("codes must be u8 (3, 64)"),
            std::string::npos);
  EXPECT_NE(message(x_device, c, w, w).find("scales must be f32 (3)"), std::string::npos);
  EXPECT_NE(message(x_device, c, s, s).find("wide must be i32 (3)"), std::string::npos);
}

}  // namespace
}  // namespace osprey
