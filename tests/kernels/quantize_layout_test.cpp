// The same numbers in another layout, type, packing, device or number of threads: the same bits.

#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include "tests/oracle/quantize.h"
#include "tests/support/quantized.h"

using namespace osprey;
using namespace osprey::test;
using Kind = kernels::Rounding::Kind;

TEST(Quantize, TransposedIsTheQuantizationOfTheTransposeBitForBit) {
  for (const std::string_view format :
       {"mxfp4", "mxfp6_e3m2", "nvfp4", "int8_row", "int4_tensor", "int4_g64"})
    for (DType dtype : {DType::f32, DType::bf16})
      for (int rotation : {0, 64}) {
        SCOPED_TRACE(fmt::format("{} {} rotation {}", format, name(dtype), rotation));
        const int64_t rows = 45, cols = 640;  // of y: neither is whole tiles
        const Floats x = uneven(cols, rows, 2);
        Options o{.rounding = {Kind::stochastic, 1, 2}, .rotation = rotation_of(rotation), .dtype = dtype};
        const Quantized straight(format, rows, cols, transposed(x, cols, rows), o);
        o.transpose = true;
        const Quantized turned(format, rows, cols, x, o);
        EXPECT_EQ(turned.result(), straight.result());
        EXPECT_EQ(turned.numbers(true), transposed(straight.numbers(), rows, cols));
      }
}

TEST(Quantize, Bf16NumbersAreRoundedAsTheSameNumbersInF32) {
  // All bf16 numbers, each in 63 blocks of other sizes; the last row has a block of infinities and NaN.
  const int64_t rows = 128, cols = 1056;
  Floats x(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < x.size(); ++i) x[i] = to_float(bf16{static_cast<uint16_t>(philox(1, 2, i).v[0])});
  for (size_t i = 0; i < x.size(); ++i)
    if (!std::isfinite(x[i])) x[i] = 0;
  for (size_t i = 0; i < 33 * static_cast<size_t>(rows); ++i) {  // blocks whose numbers are of similar sizes
    const int size = static_cast<int>(i % 260) - 133;
    for (size_t k = i % 3 ? 0 : 32; k < 32; ++k)
      x[32 * i + k] =
          to_float(osprey::to_bf16(std::ldexp(random_normal(3, 4, 32 * i + k), std::min(size, 124))));
  }
  x[x.size() - 1] = NAN;
  x[x.size() - 40] = INFINITY;
  for (ScaleRule rule : {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil}) {
    const Options half{.rule = rule, .mask = false, .dtype = DType::bf16}, whole{.rule = rule, .mask = false};
    EXPECT_EQ(Quantized("mxfp4", rows, cols, x, half).result(),
              Quantized("mxfp4", rows, cols, x, whole).result());
  }
}

TEST(Quantize, PackedInputIsTakenForItsNumbers) {
  const int64_t rows = 64, cols = 96;
  const Quantized source("mxfp8_e4m3", rows, cols, uneven(rows, cols, 3));
  for (const std::string_view format : {"mxfp4", "nvfp4", "int8_row"})
    for (bool transpose : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", format, transpose));
      const int64_t y_rows = transpose ? cols : rows, y_cols = transpose ? rows : cols;
      const Options o{.rotation = rotation_of(32), .prescale = 0.75f, .transpose = transpose};
      EXPECT_EQ(Quantized(format, y_rows, y_cols, source.packed(), o).result(),
                Quantized(format, y_rows, y_cols, source.numbers(), o).result());
    }
}

TEST(Quantize, TheNumberOfThreadsAndTheLayoutOfRowsChangeNoBit) {
  const int64_t rows = 70, cols = 1280;
  const Floats x = uneven(rows, cols, 4);
  for (const NamedFormat& f : block_formats()) {
    SCOPED_TRACE(f.name);
    Options o{.rounding = {Kind::stochastic, 1, 2}, .rotation = rotation_of(128), .threads = 1};
    const Result one = Quantized(f.name, rows, cols, x, o).result();
    o.threads = 3;
    o.padding = 1;
    EXPECT_EQ(Quantized(f.name, rows, cols, x, o).result(), one);
    const Quantized q(f.name, rows, cols, x);
    EXPECT_EQ(q.measured({.threads = 1}), q.measured({.threads = 3}));
  }
}

TEST(Quantize, OnAnyDeviceTheBitsAreThoseOfTheCpu) {
  const int64_t rows = 7, cols = 384;
  const Floats x = uneven(rows, cols, 5);
  for (const NamedFormat& named : block_formats()) {
    const BlockFormat& f = named.format;
    for (ScaleRule rule :
         {ScaleRule::even, ScaleRule::rceil, ScaleRule::mse, ScaleRule::four_over_six, ScaleRule::stats})
      for (Kind kind : {Kind::nearest_even, Kind::stochastic}) {
        if (!allows(f.scale, f.element, rule)) continue;
        SCOPED_TRACE(fmt::format("{} rule {}", named.name, static_cast<int>(rule)));
        const Options o{
            .rule = rule, .rounding = {kind, 8, 9}, .rotation = rotation_of(32), .prescale = 0.9f};
        const Quantized q(named.name, rows, cols, x, o);
        const PackedShapes s = packed_shapes(f, rows, cols, "y");
        Result want{std::vector<uint8_t>(static_cast<size_t>(s.codes.numel())), {}, -1, {}};
        want.mask.resize(static_cast<size_t>(rows * cols / 8));
        std::vector<uint8_t> small(static_cast<size_t>(s.scales.numel()));
        Floats scales(static_cast<size_t>(s.scales.numel()));
        Packed y{.format = f, .rows = rows, .cols = cols};
        y.codes = make_tensor(want.codes.data(), s.codes, DType::u8);
        const bool is_small = s.scale_dtype == DType::u8;
        y.scales = is_small ? make_tensor(small.data(), s.scales, DType::u8)
                            : make_tensor(scales.data(), s.scales, DType::f32);
        if (s.has_tensor_scale) y.tensor_scale = make_tensor(&want.tensor_scale, {1}, DType::f32);
        Floats copy = x;
        kernels::quantize(Queue{}, {.y = y,
                                    .x = make_tensor(copy.data(), {rows, cols}, DType::f32),
                                    .rule = rule,
                                    .rounding = o.rounding,
                                    .rotation = o.rotation,
                                    .prescale = o.prescale,
                                    .mask = make_tensor(want.mask.data(), {rows, cols / 8}, DType::u8)});
        if (is_small)
          want.scales.assign(small.begin(), small.end());
        else
          want.scales = bits(scales);
        EXPECT_EQ(q.result(), want);
      }
  }
}
