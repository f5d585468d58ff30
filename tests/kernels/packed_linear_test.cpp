#include "kernels/packed_linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/random.h"
#include "kernels/quantize.h"
#include "tests/support/packed_copy.h"
#include "tests/support/refusal.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;
using Floats = std::vector<float>;

namespace {

Floats normal(int64_t count, uint64_t stream) {
  Floats v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = to_float(osprey::to_bf16(static_cast<float>(random_normal(31, stream, i))));
  return v;
}
std::vector<bf16> halves(const Floats& v) {
  std::vector<bf16> b;
  for (float f : v) b.push_back(osprey::to_bf16(f));
  return b;
}

/// Two weights and an x, of the same numbers in both dtypes.
struct Layer {
  Layer(std::string_view format, int64_t m, int64_t k, int64_t padding = 0)
      : rows(m),
        cols(k),
        first(block_format(format), 37, k, padding),
        second(block_format(format), 300, k, padding),
        numbers(normal(m * k, 1)),
        x(numbers),
        half_x(halves(numbers)) {
    const DeviceCopy<float> a(normal(37 * k, 2)), b(normal(300 * k, 3));
    kernels::quantize(test_queue(), {.y = first.packed(), .x = a.tensor({37, k})});
    kernels::quantize(test_queue(), {.y = second.packed(), .x = b.tensor({300, k})});
  }
  /// What the weights stand for, stacked, as `dtype` holds it.
  Floats weights(DType dtype) const {
    Floats all;
    for (const PackedCopy* w : {&first, &second}) {
      const Packed p = w->packed();
      const DeviceCopy<float> v(Floats(static_cast<size_t>(p.rows * cols)));
      kernels::dequantize(test_queue(), {.y = v.tensor({p.rows, cols}), .x = p});
      for (float f : v.values()) all.push_back(dtype == DType::bf16 ? to_float(osprey::to_bf16(f)) : f);
    }
    return all;
  }
  Floats product(DType dtype, DType y_dtype, int threads = 2) const {
    const Packed both[] = {first.packed(), second.packed()};
    const int64_t out = 337, n = kernels::packed_linear_scratch(test_queue(threads), rows, both);
    const DeviceCopy<float> y(Floats(static_cast<size_t>(rows * out), -7.0f)),
        scratch(Floats(static_cast<size_t>(n)));
    const DeviceCopy<bf16> half_y(halves(Floats(static_cast<size_t>(rows * out), -7.0f))),
        half_scratch(halves(Floats(static_cast<size_t>(n))));
    const bool half = dtype == DType::bf16, y_half = y_dtype == DType::bf16;
    const Shape shape{rows, cols}, y_shape{rows, out};
    kernels::packed_linear(test_queue(threads), {.y = y_half ? half_y.tensor(y_shape) : y.tensor(y_shape),
                                                 .x = half ? half_x.tensor(shape) : x.tensor(shape),
                                                 .weights = both,
                                                 .scratch = half ? half_scratch.flat() : scratch.flat()});
    EXPECT_TRUE(y.guards_intact() && half_y.guards_intact() && scratch.guards_intact() &&
                half_scratch.guards_intact());
    if (!y_half) return y.values();
    Floats v;
    for (bf16 b : half_y.values()) v.push_back(to_float(b));
    return v;
  }

  int64_t rows, cols;
  PackedCopy first, second;
  Floats numbers;
  DeviceCopy<float> x;
  DeviceCopy<bf16> half_x;
};

}  // namespace

TEST(PackedLinear, IsTheProductWithWhatTheWeightsStandFor) {
  for (const std::string_view format : {"mxfp4", "nvfp4", "mxint8", "mxfp6_e2m3", "int8_row", "int4_g64"})
    for (int64_t rows : {1, 2, 7, 16, 17, 40})
      for (DType dtype : {DType::bf16, DType::f32}) {
        const int64_t cols = rows == 7 ? 1152 : 192;  // more than one run, whose last is short
        const Layer layer(format, rows, cols, rows == 2 ? 3 : 0);
        const Floats w = layer.weights(dtype);
        for (DType y_dtype : {DType::f32, DType::bf16}) {
          SCOPED_TRACE(fmt::format("{} {} rows {} -> {}", format, rows, name(dtype), name(y_dtype)));
          const Floats y = layer.product(dtype, y_dtype);
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < 337; ++c) {
              double want = 0, size = 0;
              for (int64_t k = 0; k < cols; ++k) {
                const double p = static_cast<double>(layer.numbers[static_cast<size_t>(r * cols + k)]) *
                                 static_cast<double>(w[static_cast<size_t>(c * cols + k)]);
                want += p;
                size += std::abs(p);
              }
              const double rounding = y_dtype == DType::bf16 ? std::abs(want) * 0x1p-8 : 0;
              ASSERT_NEAR(y[static_cast<size_t>(r * 337 + c)], want, size * 2e-6 + rounding)
                  << "row " << r << " column " << c;
            }
        }
      }
}

TEST(PackedLinear, RowsOfTheUnitMatrixReadTheWeightsBitForBit) {
  // 80 columns are no whole number of what tiles sum at once, and nvfp4 has them.
  for (const std::string_view format :
       {"mxfp4", "nvfp4", "nvint4", "mxint8", "mxint4", "mxfp8_e4m3", "int8_row", "int4_tensor", "int4_g32"})
    for (const int64_t cols : {int64_t{96}, int64_t{80}}) {
      const BlockFormat f = block_format(format);
      if (f.granularity == Granularity::block && cols % f.block != 0) continue;
      for (const int64_t rows : {3, 16}) {
        SCOPED_TRACE(fmt::format("{} {} rows of {}", format, rows, cols));
        Layer layer(format, rows, cols);
        const Floats w = layer.weights(DType::bf16);
        for (const int64_t first : {int64_t{0}, cols / 2, cols - rows}) {
          std::vector<bf16> unit(static_cast<size_t>(rows * cols), bf16{0});
          for (int64_t r = 0; r < rows; ++r)
            unit[static_cast<size_t>(r * cols + first + r)] = osprey::to_bf16(1);
          layer.half_x.set(unit);
          const Floats y = layer.product(DType::bf16, DType::f32);
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < 337; ++c)
              ASSERT_EQ(y[static_cast<size_t>(r * 337 + c)], w[static_cast<size_t>(c * cols + first + r)])
                  << first + r << " " << c;
        }
      }
    }
}

TEST(PackedLinear, TheNumberOfThreadsChangesNoBit) {
  for (const std::string_view format : {"mxfp4", "nvfp4"})
    for (int64_t rows : {3, 9, 33}) {
      const Layer layer(format, rows, 320);
      EXPECT_EQ(layer.product(DType::bf16, DType::f32, 1), layer.product(DType::bf16, DType::f32, 3))
          << format;
    }
}

TEST(PackedLinear, NanScalesMakeNan) {
  for (const int64_t rows : {2, 8}) {
    const Layer layer("mxfp4", rows, 64);
    std::vector<uint8_t> codes(37 * 32, 0x21), scales(37 * 2, 127);
    scales[5] = 255;  // of row 2
    PackedCopy w(block_format("mxfp4"), 37, 64);
    w.set(codes, scales);
    const Packed one[] = {w.packed()};
    const DeviceCopy<float> y(Floats(static_cast<size_t>(rows * 37)));
    const int64_t n = kernels::packed_linear_scratch(test_queue(), rows, one);
    const DeviceCopy<bf16> scratch(halves(Floats(static_cast<size_t>(n))));
    kernels::packed_linear(test_queue(), {.y = y.tensor({rows, 37}),
                                          .x = layer.half_x.tensor({rows, 64}),
                                          .weights = one,
                                          .scratch = scratch.flat()});
    const Floats v = y.values();
    for (size_t i = 0; i < v.size(); ++i) EXPECT_EQ(std::isnan(v[i]), i % 37 == 2) << i;
  }
}

TEST(PackedLinear, ScratchIsAPanelAndNotTheWeights) {
  const PackedCopy w(block_format("mxfp4"), 4096, 64);
  const Packed one[] = {w.packed()};
  EXPECT_LE(kernels::packed_linear_scratch(test_queue(), 100, one), 2048 * 64);
  EXPECT_GT(kernels::packed_linear_scratch(test_queue(), 100, one), 0);
  EXPECT_EQ(kernels::packed_linear_scratch(test_queue(), 16, one) == 0,
            test_device().kind == DeviceKind::cpu);
}

TEST(PackedLinear, WhatDoesNotFitIsRefused) {
  const Layer layer("mxfp4", 20, 64), other("nvfp4", 20, 64);
  const Packed one[] = {layer.first.packed()}, mixed[] = {layer.first.packed(), other.first.packed()};
  const DeviceCopy<float> y(Floats(20 * 37)), scratch(Floats(37 * 64));
  const kernels::PackedLinear good{
      .y = y.tensor({20, 37}), .x = layer.x.tensor({20, 64}), .weights = one, .scratch = scratch.flat()};
  const auto why = [](const kernels::PackedLinear& a) {
    return refusal([&] { kernels::packed_linear(test_queue(), a); });
  };
  EXPECT_EQ(why(good), "accepted");
  kernels::PackedLinear bad = good;
  bad.weights = mixed;
  EXPECT_NE(why(bad).find("of one format and width, got nvfp4"), std::string::npos) << why(bad);
  bad = good;
  bad.x = layer.x.tensor({40, 32});
  EXPECT_NE(why(bad).find("x must be f32 or bf16 (M, 64)"), std::string::npos) << why(bad);
  bad = good;
  bad.y = y.tensor({37, 20});
  EXPECT_NE(why(bad).find("y must be f32 or bf16 (20, 37)"), std::string::npos) << why(bad);
  bad = good;
  bad.scratch = scratch.range(0, 64);
  EXPECT_NE(why(bad).find("scratch must be 2368 elements of f32"), std::string::npos) << why(bad);
  bad.weights = {};
  EXPECT_NE(why(bad).find("no weights"), std::string::npos);
}
