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

namespace {

/// What quantize() does to mxfp4, one element after the other, from dense x that is not transposed.
Result by_the_rules(const Floats& x, int64_t rows, int64_t cols, const Options& o) {
  const size_t n = x.size();
  Result want{std::vector<uint8_t>(n / 2), std::vector<uint32_t>(n / 32), -1, std::vector<uint8_t>(n / 8)};
  Floats v = x;
  const auto size = static_cast<size_t>(o.rotation.size);
  const Philox signs = rotation_signs(o.rotation.seed, o.rotation.stream);
  for (size_t at = 0; size > 0 && at < n; at += size) {
    for (size_t i = 0; i < size; ++i)
      if (signs.v[i / 32] >> i % 32 & 1) v[at + i] = -v[at + i];
    for (size_t h = 1; h < size; h *= 2)
      for (size_t i = 0; i < size; ++i)
        if (!(i & h)) {
          const float a = v[at + i], b = v[at + i + h];
          v[at + i] = a + b;
          v[at + i + h] = a - b;
        }
  }
  const float factor = kernels::rotation_factor(o.rotation, o.prescale);
  for (float& f : v) f = size > 0 || factor != 1 ? f * factor : f;
  for (size_t b = 0; b < n / 32; ++b) {
    uint32_t largest = 0;
    for (size_t i = 32 * b; i < 32 * (b + 1); ++i) largest = std::max(largest, magnitude_bits(v[i]));
    int64_t sum = 0, squares = 0;
    for (size_t i = 32 * b; largest < float_infinity && i < 32 * (b + 1); ++i) {
      const int64_t k = in_units(v[i], unit_exponent(largest));
      sum += k;
      squares += k * k;
    }
    const BlockScale s =
        block_scale_e8m0(o.rule == ScaleRule::mse ? e8m0_of_deviation(largest, 32, sum, squares)
                                                  : e8m0_of_largest(Element::e2m1, o.rule, largest),
                         largest);
    want.scales[b] = s.stored;
    for (size_t i = 32 * b; i < 32 * (b + 1); ++i) {
      const float u = v[i] * s.inverse;
      const uint32_t draw =
          draw_of(draw_group(o.rounding.seed, o.rounding.stream, i / 8), static_cast<int>(i % 8));
      const uint32_t code = !(s.inverse > 0)                      ? 0
                            : o.rounding.kind == Kind::stochastic ? encode_stochastic(Element::e2m1, u, draw)
                                                                  : encode_nearest(Element::e2m1, u);
      want.codes[i / 2] |= static_cast<uint8_t>(code << (4 * (i % 2)));
      want.mask[i / 8] |= static_cast<uint8_t>((std::abs(u) <= 6) << (i % 8));
    }
  }
  EXPECT_EQ(static_cast<int64_t>(n), rows * cols);
  return want;
}

/// Numbers of every size there is with many zeros and denormals, blocks of zeros, and one of no numbers.
Floats all_sizes(int64_t rows, int64_t cols) {
  Floats x = normal(rows * cols, 21);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t b = i / 32;
    const int own = i % 5 == 1 ? -static_cast<int>(i / 5 % 40) : 0;  // far below the block's largest
    x[i] =
        b % 17 == 3 ? (i % 2 ? 0.0f : -0.0f) : std::ldexp(x[i], static_cast<int>(b * 37 % 273) - 149 + own);
    if (b % 11 == 7)
      x[i] = std::ldexp(static_cast<float>(static_cast<int>(philox(5, 6, i).v[0] % 49) - 24), -2);
    if (!std::isfinite(x[i])) x[i] = 3e38f;
  }
  return x;
}

}  // namespace

TEST(Quantize, EveryWayToMxfp4IsTheRulesElementByElement) {
  // Whole groups of 16 rows and some left over, from every kind of source, by every rule.
  // A GPU has one way for all rows, and the one that is played on the CPU takes its time.
  const int64_t rows = test_device().kind == DeviceKind::cpu ? 16 * 3 + 5 : 5, cols = 384;
  Floats x = all_sizes(rows, cols);
  for (float& f : x) f = to_float(osprey::to_bf16(f));
  for (float& f : x)
    if (!std::isfinite(f)) f = 3e38f;
  x[3 * static_cast<size_t>(cols) + 40] = NAN;
  x[x.size() - 200] = -INFINITY;
  for (ScaleRule rule :
       {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil, ScaleRule::mse})
    for (Kind kind : {Kind::nearest_even, Kind::stochastic})
      for (int rotation : {0, 16, 32, 64, 128}) {
        SCOPED_TRACE(fmt::format("rule {} stochastic {} rotation {}", static_cast<int>(rule),
                                 kind == Kind::stochastic, rotation));
        Options o{.rule = rule,
                  .rounding = {kind, 0x123456789ull, 0xabcdef0123ull},
                  .rotation = rotation_of(rotation)};
        const Result want = by_the_rules(x, rows, cols, o);
        for (DType dtype : {DType::f32, DType::bf16})
          for (bool transpose : {false, true}) {
            o.dtype = dtype;
            o.transpose = transpose;
            const Result got =
                Quantized("mxfp4", rows, cols, transpose ? transposed(x, rows, cols) : x, o).result();
            EXPECT_EQ(got, want) << name(dtype) << (transpose ? " transposed" : "");
          }
      }
}

TEST(Quantize, PackedMxfp4ByColumnsIsTakenForItsNumbers) {
  // Groups of 128 columns of the source and some left over, of which the last begins in the middle of a
  // block.
  const int64_t rows = 160, cols = 32 * 5 * 2;
  const Quantized source("mxfp4", rows, cols, all_sizes(rows, cols), {.rule = ScaleRule::rceil});
  for (int rotation : {0, 16, 32}) {
    Options o{.rule = ScaleRule::rceil,
              .rounding = {Kind::stochastic, 7, 8},
              .rotation = rotation_of(rotation),
              .transpose = true};
    const Result got = Quantized("mxfp4", cols, rows, source.packed(), o).result();
    o.transpose = false;
    Result want = by_the_rules(transposed(source.numbers(), rows, cols), cols, rows, o);
    EXPECT_EQ(got, want) << rotation;
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
    for (ScaleRule rule : {ScaleRule::even, ScaleRule::mse, ScaleRule::four_over_six, ScaleRule::stats})
      for (Kind kind : {Kind::nearest_even, Kind::stochastic}) {
        const bool e2m1 = f.element == Element::e2m1;
        if (rule == ScaleRule::mse && !(e2m1 && f.scale == ScaleType::e8m0)) continue;
        if (rule == ScaleRule::four_over_six && !(e2m1 && f.scale == ScaleType::e4m3)) continue;
        if (rule == ScaleRule::stats && f.scale != ScaleType::f32) continue;
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
