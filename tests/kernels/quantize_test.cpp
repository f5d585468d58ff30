#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include "tests/oracle/quantize.h"
#include "tests/support/quantized.h"
#include "tests/support/refusal.h"

using namespace osprey;
using namespace osprey::test;
using Kind = kernels::Rounding::Kind;

TEST(Quantize, StochasticRoundingIsUnbiasedOverDraws) {
  // Every element is 0.3 or 5.1 or -2.7 times its scale, and rounds to the numbers around it.
  const int64_t rows = test_device().kind == DeviceKind::cuda ? 64 : 1024, cols = 1024;
  Floats x(static_cast<size_t>(rows * cols));
  const float kinds[4] = {0.3f, 5.1f, -2.7f, 6.0f};
  for (size_t i = 0; i < x.size(); ++i) x[i] = kinds[i % 4];
  const Floats y =
      Quantized("mxfp4", rows, cols, x, {.rule = ScaleRule::rceil, .rounding = {Kind::stochastic, 1, 2}})
          .numbers();
  const double step[4] = {0.5, 2, 1, 2}, n = static_cast<double>(x.size() / 4);
  for (size_t k = 0; k < 4; ++k) {
    double sum = 0;
    for (size_t i = k; i < x.size(); i += 4) sum += static_cast<double>(y[i]);
    const double part = std::abs(kinds[k]) / step[k] - std::floor(std::abs(kinds[k]) / step[k]);
    const double sigma = step[k] * std::sqrt(part * (1 - part) / n);
    EXPECT_NEAR(sum / n, static_cast<double>(kinds[k]), 4 * sigma + step[k] * 0x1p-17 + 1e-7) << kinds[k];
  }
}

TEST(Quantize, DrawsDependOnSeedStreamAndPlaceOnly) {
  const Floats x(64, 0.25f), twice(128, 0.25f);
  const auto codes = [&](const Floats& v, uint64_t seed, uint64_t stream) {
    return Quantized("int8_tensor", 1, static_cast<int64_t>(v.size()), v,
                     {.rounding = {Kind::stochastic, seed, stream}, .prescale = 1.0f})
        .result()
        .codes;
  };
  EXPECT_EQ(codes(x, 1, 2), codes(x, 1, 2));
  Floats fine = normal(128, 9);
  EXPECT_NE(codes(fine, 1, 2), codes(fine, 2, 2));
  EXPECT_NE(codes(fine, 1, 2), codes(fine, 1, 3));
  // A row that is no multiple of a group of draws: element (1, 0) draws the number of columns.
  const Floats row = normal(20, 10);
  Floats two = row, moved(40, 0.0f);
  two.insert(two.end(), row.begin(), row.end());
  std::copy(row.begin(), row.end(), moved.begin() + 20);
  moved[0] =
      *std::max_element(row.begin(), row.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
  const auto in_rows =
      Quantized("int8_tensor", 2, 20, two, {.rounding = {Kind::stochastic, 1, 2}, .mask = false})
          .result()
          .codes;
  const auto in_one =
      Quantized("int8_tensor", 1, 40, moved, {.rounding = {Kind::stochastic, 1, 2}, .mask = false})
          .result()
          .codes;
  EXPECT_TRUE(std::equal(in_rows.begin() + 20, in_rows.end(), in_one.begin() + 20));
}

TEST(Quantize, ARotationIsTheHadamardTransformOfSignedInputs) {
  const int64_t rows = 2, cols = 256;
  const Floats x = normal(rows * cols, 12);
  for (int size : {16, 32, 64, 128}) {
    SCOPED_TRACE(size);
    const kernels::Rotation rotation = rotation_of(size);
    const Philox p = rotation_signs(rotation.seed, rotation.stream);
    std::vector<int> signs;
    for (int i = 0; i < size; ++i) signs.push_back(p.v[i / 32] >> i % 32 & 1 ? -1 : 1);
    EXPECT_GT(std::count(signs.begin(), signs.end(), -1), 0);
    const std::vector<double> want = oracle::rotated({x.begin(), x.end()}, signs);
    // 8-bit integers have steps of 1/64 of a scale: near enough to see the numbers through.
    const Floats got = Quantized("int8_tensor", rows, cols, x, {.rotation = rotation}).numbers();
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 0.02);

    // unrotate() is its transpose, and its inverse.
    const DeviceCopy<float> rotated(Floats(want.begin(), want.end())), back(Floats(x.size(), 1.0f));
    const Shape shape{rows, cols};
    kernels::unrotate(test_queue(),
                      {.y = {back.tensor(shape)}, .x = rotated.tensor(shape), .rotation = rotation});
    const Floats b = back.values();
    for (size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(b[i], x[i], 2e-6);
  }
}

TEST(Quantize, SignsOnTheInputSideChangeTheErrorFromSeedToSeed) {
  // Signs on the output side would leave every magnitude, and so the error, what it was.
  const int64_t rows = 8, cols = 256;
  const Floats x = normal(rows * cols, 13);
  const auto error = [&](uint64_t seed) {
    const Options o{.rotation = rotation_of(32, seed)};
    const std::vector<double> sums = Quantized("mxfp4", rows, cols, x, o).measured(o);
    return sums[1] / sums[0];
  };
  const double one = error(1), two = error(2);
  EXPECT_NE(one, two);
  EXPECT_GT(std::abs(one - two), 1e-6);
  EXPECT_EQ(one, error(1));
}

TEST(Quantize, MeasuresInTheRotationOfItsStepAndAddsUp) {
  const int64_t rows = 300, cols = 256;
  const DeviceCopy<double> step(std::vector<double>{7});
  kernels::Rotation drawn = rotation_of(32, 3), fixed = drawn;
  drawn.step = step.flat();
  fixed.stream += 7;
  const Quantized q("mxfp4", rows, cols, normal(rows * cols, 17), {.rotation = drawn});
  const std::vector<double> once = q.measured({.rotation = drawn});
  EXPECT_EQ(once, q.measured({.rotation = fixed}));
  EXPECT_LT(once[1], 0.02 * once[0]);
  EXPECT_GT(q.measured({.rotation = rotation_of(32, 3)})[1], once[0])
      << "other signs than it was quantized with";
  const std::vector<double> more = q.measured({.rotation = drawn, .add = true});
  for (size_t i = 0; i < once.size(); ++i) EXPECT_EQ(more[i], once[i] - 1.0) << i;
}

TEST(Quantize, BlocksWithoutANumberBecomeNanAndNoOthers) {
  const int64_t cols = 128;
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Floats x = normal(2 * cols, 14);
    x[40] = bad;
    for (const NamedFormat& named : block_formats()) {
      SCOPED_TRACE(fmt::format("{} {}", named.name, bad));
      const BlockFormat& f = named.format;
      const Quantized q(named.name, 2, cols, x);
      const Floats y = q.numbers();
      for (size_t i = 0; i < y.size(); ++i) {
        const auto block = static_cast<size_t>(f.block);
        const bool hit = f.granularity == Granularity::block ? i / block == 40 / block
                         : f.granularity == Granularity::row ? i < static_cast<size_t>(cols)
                                                             : true;
        EXPECT_EQ(std::isnan(y[i]), hit) << i;
        if (!hit) continue;
        EXPECT_EQ(code_at(q.result().codes, f.bits(), i), 0u);
        EXPECT_EQ(q.result().mask[i / 8] >> i % 8 & 1, 0);
      }
      if (f.scale == ScaleType::e8m0) {
        EXPECT_EQ(q.result().scales[1], 0xffu);
      }
      if (f.scale == ScaleType::e4m3) {
        EXPECT_EQ(q.result().scales[2], 0x7fu);
      }
    }
  }
}

TEST(Quantize, BlocksOfZerosHaveScaleAndCodesZero) {
  for (const NamedFormat& f : block_formats()) {
    SCOPED_TRACE(f.name);
    const Result r = Quantized(f.name, 2, 128, Floats(256, 0.0f)).result();
    EXPECT_EQ(std::count(r.codes.begin(), r.codes.end(), 0), static_cast<int64_t>(r.codes.size()));
    EXPECT_EQ(std::count(r.scales.begin(), r.scales.end(), 0u), static_cast<int64_t>(r.scales.size()));
    EXPECT_EQ(std::count(r.mask.begin(), r.mask.end(), 0xff), 32);
    for (float v : Quantized(f.name, 2, 128, Floats(256, 0.0f)).numbers()) EXPECT_EQ(v, 0.0f);
  }
}

TEST(Quantize, TinyAndHugeNumbersStayFinite) {
  for (const NamedFormat& f : block_formats())
    for (float size : {1e-45f, 1e-40f, 1e-38f, 1e38f, 3.4e38f})
      for (ScaleRule rule : {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil}) {
        if (!allows(f.format.scale, f.format.element, rule)) continue;
        SCOPED_TRACE(fmt::format("{} {} rule {}", f.name, size, static_cast<int>(rule)));
        Floats x(128, size);
        x[3] = -size / 2;
        for (float v : Quantized(f.name, 1, 128, x, {.rule = rule}).numbers()) {
          EXPECT_TRUE(std::isfinite(v));
          EXPECT_LE(std::abs(v), 2 * size);
        }
      }
}

TEST(Quantize, ScalesOfRuleRceilClipNothingSoStochasticRoundingIsUnbiased) {
  const int64_t rows = test_device().kind == DeviceKind::cuda ? 64 : 256, cols = 256;
  const Floats x = normal(rows * cols, 33);
  float most = 0;  // may be above the largest scale by its rounding
  for (const float v : x) most = std::max(most, std::abs(v));
  for (const std::string_view format : {"nvfp4", "nvint4"})
    for (const ScaleRule rule : {ScaleRule::even, ScaleRule::rceil}) {
      SCOPED_TRACE(fmt::format("{} rule {}", format, static_cast<int>(rule)));
      double largest = 0, rounded = 0;  // sums over the blocks of their largest |x| and what became of it
      for (uint64_t seed = 0; seed < 8; ++seed) {
        const Options o{.rule = rule, .rounding = {Kind::stochastic, seed, 4}};
        const Quantized q(format, rows, cols, x, o);
        for (size_t i = 0; rule == ScaleRule::rceil && i < x.size(); ++i)
          ASSERT_TRUE((q.result().mask[i / 8] >> i % 8 & 1) || std::abs(x[i]) == most);
        const Floats y = q.numbers();
        for (size_t b = 0; b < x.size(); b += 16) {
          size_t at = b;
          for (size_t i = b; i < b + 16; ++i)
            if (std::abs(x[i]) > std::abs(x[at])) at = i;
          largest += static_cast<double>(std::abs(x[at]));
          rounded += static_cast<double>(std::copysign(y[at], y[at] * x[at]));
        }
      }
      if (rule == ScaleRule::rceil)
        EXPECT_NEAR(rounded / largest, 1, 5e-3);
      else
        EXPECT_LT(rounded / largest, 0.994) << "clips what lies above the rounded scale";
    }
}

TEST(Quantize, TheMaskSaysWhatWasClippedAndUnrotateAppliesIt) {
  const int64_t rows = 3, cols = 128;
  const Floats x = normal(rows * cols, 15);
  const kernels::Rotation rotation = rotation_of(32);
  const Quantized q("mxfp4", rows, cols, x, {.rule = ScaleRule::mse, .rotation = rotation});
  int64_t clipped = 0;
  for (uint8_t byte : q.result().mask) clipped += 8 - std::popcount(byte);
  EXPECT_GT(clipped, 0) << "this rule clips";
  EXPECT_LT(clipped, rows * cols / 20);
  EXPECT_EQ(q.measured({.rotation = rotation})[3], static_cast<double>(clipped));

  for (bool add : {false, true})
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Floats g = normal(rows * cols, 16);
      Floats masked = g;
      for (size_t i = 0; i < masked.size(); ++i)
        if (!(q.result().mask[i / 8] >> i % 8 & 1)) masked[i] = 0;
      const DeviceCopy<uint8_t> mask(q.result().mask);
      const DeviceCopy<float> in(g), in_masked(masked), out(normal(rows * cols, 17)),
          want(normal(rows * cols, 17));
      const DeviceCopy<bf16> half(to_bf16(normal(rows * cols, 17)));
      const Shape shape{rows, cols};
      const Tensor y = dtype == DType::bf16 ? half.tensor(shape) : out.tensor(shape);
      kernels::unrotate(test_queue(), {.y = {y, add},
                                       .x = in.tensor(shape),
                                       .mask = mask.tensor({rows, cols / 8}),
                                       .rotation = rotation});
      kernels::unrotate(test_queue(),
                        {.y = {want.tensor(shape), add}, .x = in_masked.tensor(shape), .rotation = rotation});
      EXPECT_TRUE(half.guards_intact() && out.guards_intact());
      const Floats w = want.values(), o = out.values();
      const std::vector<bf16> h = half.values();
      for (size_t i = 0; i < w.size(); ++i)
        EXPECT_NEAR(dtype == DType::bf16 ? to_float(h[i]) : o[i], w[i], dtype == DType::bf16 ? 0.04 : 1e-6);
    }
}

TEST(Quantize, UnrotateWorksInPlace) {
  const Floats x = normal(256, 18);
  const DeviceCopy<float> both(x), in(x), out(x);
  const Shape shape{2, 128};
  kernels::unrotate(test_queue(),
                    {.y = {both.tensor(shape)}, .x = both.tensor(shape), .rotation = rotation_of(128)});
  kernels::unrotate(test_queue(),
                    {.y = {out.tensor(shape)}, .x = in.tensor(shape), .rotation = rotation_of(128)});
  EXPECT_EQ(both.values(), out.values());
}

TEST(Quantize, DequantizeMultipliesByItsFactorAndWritesBf16) {
  const Quantized q("mxfp4", 2, 64, normal(128, 19));
  const Floats plain = q.numbers(), scaled_up = q.numbers(false, 16.0f / 9.0f);
  const DeviceCopy<bf16> half(std::vector<bf16>(128));
  kernels::dequantize(test_queue(), {.y = half.tensor({2, 64}), .x = q.packed()});
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(scaled_up[i], plain[i] * (16.0f / 9.0f));
    EXPECT_EQ(to_float(half.values()[i]), plain[i]) << "4-bit floats are exact in bf16";
  }
}

TEST(Quantize, HostileCodesAreDefined) {
  PackedCopy p(block_format("mxint8"), 1, 32);
  p.set(std::vector<uint8_t>(32, 0x80), {127});
  const DeviceCopy<float> y(Floats(32, 0.0f));
  kernels::dequantize(test_queue(), {.y = y.tensor({1, 32}), .x = p.packed()});
  for (float v : y.values()) EXPECT_EQ(v, -2.0f);
}

TEST(Quantize, MeasuresCountWhatTheySay) {
  // Four blocks a row: sizes 1, 2^4, 2^15 and zeros in the first; 1 in all of the second; 1 and 2^4 in the
  // third.
  const int64_t rows = 3, cols = 128;
  Floats x(static_cast<size_t>(rows * cols), 1.0f);
  for (size_t i = 0; i < 32; ++i) {
    x[32 + i] = 0x1p4f;
    x[64 + i] = 0x1p15f;
    x[96 + i] = 0;
    x[256 + i] = 0x1p4f;
  }
  x[64] = 0.5f;                  // far below half a step of its block: becomes zero
  x[128] = 7.5f, x[129] = 7.9f;  // clipped to 6 by rule floor, in a block that is 1 elsewhere
  const Options o{.rule = ScaleRule::floor};
  const std::vector<double> s = Quantized("mxfp4", rows, cols, x, o).measured();
  double squares = 0;
  for (float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
  EXPECT_DOUBLE_EQ(s[0], squares);
  EXPECT_NEAR(s[1], 0.25 + 1.5 * 1.5 + 1.9 * 1.9, 1e-5);
  EXPECT_EQ(s[2], 384);
  EXPECT_EQ(s[3], 2);
  EXPECT_EQ(s[4], 1);
  EXPECT_EQ(s[5], 3);
  EXPECT_EQ(s[6], 2) << "the first and the third row";
  EXPECT_EQ(s[7], 1) << "the first row";
}

TEST(Quantize, WhatDoesNotFitIsRefusedWithTheCure) {
  const auto shapes = [](std::string_view format, int64_t cols) {
    return refusal([&] { packed_shapes(block_format(format), 4, cols, "w1"); });
  };
  EXPECT_EQ(shapes("mxfp4", 100),
            "[block_format] w1 is 100 wide, but rows of mxfp4 are multiples of 32; the nearest is 96");
  EXPECT_NE(shapes("int4_g128", 10).find("the nearest is 128"), std::string::npos);
  EXPECT_NE(shapes("int4_row", 7).find("multiples of 2"), std::string::npos);
  EXPECT_EQ(shapes("int8_row", 7), "accepted");
  EXPECT_NE(refusal([] { block_format("fp5"); }).find("mxfp4, mxfp6_e2m3"), std::string::npos);

  const int64_t rows = 4, cols = 64;
  const PackedCopy y(block_format("mxfp4"), rows, cols), nv(block_format("nvfp4"), rows, cols);
  const DeviceCopy<float> x(normal(rows * cols, 21));
  const DeviceCopy<uint8_t> mask(std::vector<uint8_t>(rows * cols / 8));
  const kernels::Quantize good{.y = y.packed(), .x = x.tensor({rows, cols})};
  const auto why = [](const kernels::Quantize& a) {
    return refusal([&] { kernels::quantize(test_queue(), a); });
  };
  EXPECT_EQ(why(good), "accepted");
  auto bad = good;
  bad.rotation = rotation_of(128);
  EXPECT_NE(why(bad).find("a rotation of 128 does not divide rows of 64"), std::string::npos);
  bad = good;
  bad.rotation.size = 48;
  EXPECT_NE(why(bad).find("16, 32, 64 or 128"), std::string::npos);
  bad = good;
  bad.mask = mask.tensor({rows, cols / 8}).view({rows / 2, cols / 4});
  EXPECT_NE(why(bad).find("mask must be (4, 8)"), std::string::npos);
  bad = good;
  bad.transpose = true;
  EXPECT_NE(why(bad).find("x must be (64, 4)"), std::string::npos);
  bad = good;
  bad.packed_x = y.packed();
  EXPECT_NE(why(bad).find("not both"), std::string::npos);
  bad = good;
  bad.rule = ScaleRule::four_over_six;
  EXPECT_NE(why(bad).find("four_over_six is for e2m1 elements with e4m3 scales, not for mxfp4"),
            std::string::npos);
  bad.rule = ScaleRule::stats;
  EXPECT_NE(why(bad).find("stats is for f32 scales, not for mxfp4"), std::string::npos);
  bad = good;
  bad.y = nv.packed();
  bad.rule = ScaleRule::mse;
  EXPECT_NE(why(bad).find("not for nvfp4"), std::string::npos);
  for (const ScaleRule rule : {ScaleRule::floor, ScaleRule::ceil}) {
    bad.rule = rule;
    EXPECT_NE(why(bad).find("rules floor and ceil are for e8m0 scales"), std::string::npos);
  }
  bad.rule = ScaleRule::even;
  bad.y.tensor_scale = {};
  EXPECT_NE(why(bad).find("tensor_scale"), std::string::npos);
  bad = good;
  bad.y.scales = nv.packed().scales;
  EXPECT_NE(why(bad).find("scales of mxfp4 (4, 64) must be u8 (4, 2), got u8 (4, 4)"), std::string::npos);
  bad = good;
  bad.y.codes = make_tensor(nullptr, bad.y.codes.shape, DType::u8, {DeviceKind::meta, 0});
  EXPECT_NE(why(bad).find("codes must lie on"), std::string::npos);
}

TEST(Quantize, AStepOnTheDeviceIsAddedToTheStreams) {
  const Floats x = normal(32 * 64, 3);
  TestBed bed;
  const Tensor values = make(bed.inputs, {32, 64}, DType::f32, Values(x.begin(), x.end()));
  const Tensor step = bed.zeros(1);
  const auto codes = [&](uint64_t stream, std::optional<double> at) {
    const PackedShapes s = packed_shapes(block_format("mxfp4"), 32, 64, "y");
    const Packed y{.format = block_format("mxfp4"),
                   .rows = 32,
                   .cols = 64,
                   .codes = bed.inputs.alloc(s.codes, DType::u8),
                   .scales = bed.inputs.alloc(s.scales, DType::u8)};
    if (at) write(step, {*at});
    const Tensor moves = at ? step : Tensor{};
    kernels::quantize(
        bed.queue, {.y = y,
                    .x = values,
                    .rule = ScaleRule::rceil,
                    .rounding = {.kind = Kind::stochastic, .seed = 1, .stream = stream + 50, .step = moves},
                    .rotation = {.size = 32, .seed = 1, .stream = stream, .step = moves}});
    std::vector<uint8_t> bytes(static_cast<size_t>(y.codes.numel()));
    kernels::download(bed.queue, bytes.data(), y.codes);
    return bytes;
  };
  EXPECT_EQ(codes(7, 5.0), codes(12, {}));
  EXPECT_EQ(codes(7, 0.0), codes(7, {}));
  EXPECT_NE(codes(7, 0.0), codes(7, 1.0));
}
