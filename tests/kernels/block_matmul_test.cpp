#include "kernels/block_matmul.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "kernels/cpu/block_product.h"
#include "tests/support/block_problem.h"
#include "tests/support/on_device.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using cpu::BlockEngine;
using test::Buffer;
using test::DeviceCopy;
using test::OnDevice;
using test::refusal;
using Case = test::BlockCase;
using Matrix = test::BlockMatrix;
using OnTheDevice = test::PackedOnDevice;
using Problem = test::BlockProblem;
using test::Spread;

// A tile of bf16 adds the products of even and of odd k of 32 one after the other, then both to what was
// there: at most 18 roundings for 32 products, and one for every further 32. BlockProblem::expect() allows k
// / 16 + 8.
constexpr double tile_order = 10 * 6e-8;

/// Holds y to the oracle as closely as the engine allows.
void expect_of(std::string_view engine, const Problem& p, const Buffer& y) {
  if (engine == "bf16_tiles")
    p.expect(y, tile_order, oracle::Range::normal);
  else
    p.expect(y, engine.starts_with("fp8") ? kernels::e4m3_slack : 0);
}

/// As block_pack() leaves it; undefined where this device wants none.
struct Pack {
  Pack(const Queue& queue, std::span<const Packed> b)
      : bytes(kernels::block_pack_bytes(queue, b)),
        memory(std::vector<uint8_t>(static_cast<size_t>(bytes) + 64, 0xa5)) {
    if (bytes == 0) return;
    const int64_t begin = (64 - reinterpret_cast<int64_t>(memory.flat().data) % 64) % 64;
    tensor = memory.range(begin, begin + bytes);
    kernels::block_pack(queue, {.pack = tensor, .b = b});
  }
  int64_t bytes;
  DeviceCopy<uint8_t> memory;
  Tensor tensor;
};

TEST(BlockMatmul, AgreesWithTheOracleInEveryFormat) {
  for (const auto& [af, bf] : test::block_pairs())
    for (const Case& c : test::block_cases(af, bf)) {
      SCOPED_TRACE(fmt::format("{} x {}, {}", name(af), name(bf), label(c)));
      const Problem p(c, af, bf);
      std::vector<Buffer> results;
      std::string_view engine;
      for (const bool packed : {false, true})
        for (const int threads : {1, 2, 3}) {
          results.push_back(p.output());
          OnDevice on(threads);
          const Pack pack(on.queue, p.views);
          kernels::BlockMatmul args = p.args(on(results.back()));
          if (packed && pack.bytes > 0) args.pack = pack.tensor;
          engine = kernels::block_matmul_engines(on.queue, args)[0];
          kernels::block_matmul(on.queue, args);
          on.fetch();
          EXPECT_TRUE(results.back().same_bits(results.front())) << "threads or the pack change bits";
        }
      expect_of(engine, p,
                results.front());  // FP8: more closely in tests/kernels/cuda/block_engines_test.cpp
      if (HasFatalFailure()) return;
    }
}

Buffer result_of(BlockEngine engine, const Problem& p) {
  Buffer y = p.output();
  cpu::block_matmul_by(engine, {.device = {}, .threads = 2}, p.args(y));
  return y;
}

bool has_other_bits(BlockEngine engine, const BlockFormat& a, const BlockFormat& b) {
  return engine == BlockEngine::bf16_tiles || (engine == BlockEngine::tiles && a.bits() + b.bits() <= 8 &&
                                               a.scale == ScaleType::e8m0 && b.scale == ScaleType::e8m0);
}

class BlockEngines : public testing::TestWithParam<BlockEngine> {};

TEST_P(BlockEngines, AgreeWithTheOracleAndWhereTheySaySoBitForBit) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "engines of the CPU";
  const Matrix probe(block_format("mxfp4"), 1, 32, 1, Spread::narrow);
  const OnTheDevice on_device(probe);
  if (const char* why = cpu::why_not(GetParam(), on_device, on_device)) GTEST_SKIP() << why;
  int compared = 0;
  for (const auto& [af, bf] : test::block_pairs())
    for (const Case& c : test::block_cases(af, bf)) {
      SCOPED_TRACE(fmt::format("{}: {} x {}, {}", cpu::name(GetParam()), name(af), name(bf), label(c)));
      const Problem p(c, af, bf);
      if (cpu::why_not(GetParam(), p.a_device, p.views[0])) continue;
      const Buffer got = result_of(GetParam(), p);
      expect_of(cpu::name(GetParam()), p, got);
      if (HasFatalFailure()) return;
      ++compared;
      if (has_other_bits(GetParam(), af, bf)) continue;
      // Payloads of NaN, where scales overflow, are nobody's promise.
      const std::vector<double> a = got.values(), b = result_of(BlockEngine::definition, p).values();
      for (size_t i = 0; i < a.size(); ++i)
        ASSERT_TRUE(std::bit_cast<uint64_t>(a[i]) == std::bit_cast<uint64_t>(b[i]) ||
                    (std::isnan(a[i]) && std::isnan(b[i])))
            << "element " << i << ": " << a[i] << " and by definition " << b[i];
    }
  EXPECT_GT(compared, 50);
}
INSTANTIATE_TEST_SUITE_P(, BlockEngines, testing::ValuesIn(cpu::block_engines),
                         [](const auto& engine) { return std::string(cpu::name(engine.param)); });

TEST(BlockMatmul, EnginesByNameAgreeWithTheOracle) {
  const BlockFormat& f = block_format("mxfp4");
  const Problem p({70, {16}, 128, DType::f32, false, 1, 0, Spread::narrow}, f, f);
  OnDevice on;
  Buffer probe = p.output();
  const std::vector<std::string_view> names = kernels::block_matmul_engines(on.queue, p.args(on(probe)));
  EXPECT_NE(std::find(names.begin(), names.end(), "definition"), names.end());
  for (const std::string_view engine : names) {
    SCOPED_TRACE(engine);
    Buffer y = p.output();
    OnDevice here;
    kernels::block_matmul_by(engine, here.queue, p.args(here(y)));
    here.fetch();
    engine.starts_with("fp8") ? p.expect(y, 8 * kernels::e4m3_slack) : expect_of(engine, p, y);
  }
  EXPECT_NE(refusal([&] {
              kernels::block_matmul_by("abacus", on.queue, p.args(on(probe)));
            }).find("the engine abacus cannot be had for these operands; there are " + std::string(names[0])),
            std::string::npos);
}

// Rows of a and b that share a tile with a row of wide scales, or none, are what they are alone.
TEST(BlockMatmul, ARowDoesNotDependOnItsNeighbours) {
  for (const char* format : {"mxfp4", "mxint8", "mxfp6_e3m2", "mxfp8_e4m3"}) {
    SCOPED_TRACE(format);
    const BlockFormat& f = block_format(format);
    const Problem p({64, {40}, 1088, DType::f32, false, 1, 0, Spread::wide}, f, f);
    Buffer all = p.output(), some({18, 25}, DType::f32);
    OnDevice on;
    kernels::block_matmul(on.queue, p.args(on(all)));
    kernels::BlockMatmul args = p.args(on(some));
    const Packed part = p.views[0].row_range(11, 36);
    args.a = args.a.row_range(5, 23);
    args.b = {&part, 1};
    kernels::block_matmul(on.queue, args);
    on.fetch();
    for (int64_t r = 0; r < 18; ++r)
      for (int64_t j = 0; j < 25; ++j) ASSERT_EQ(some.get(r, j), all.get(r + 5, j + 11)) << r << ", " << j;
  }
}

// More rows, columns and k than are held at a time, and whatever lies between.
TEST(BlockMatmul, TilesOfBf16TakeAnyShape) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "an engine of the CPU";
  std::vector<BlockFormat> formats;
  for (const NamedFormat& f : block_formats())
    if (f.format.scale == ScaleType::e8m0) formats.push_back(f.format);
  uint64_t n = 0;
  const auto draw = [&](int64_t most) {
    return 1 + static_cast<int64_t>(random_uniform(11, 3, n++) * static_cast<double>(most));
  };
  const auto pick = [&]<class T>(const std::vector<T>& of) {
    return of[static_cast<size_t>(draw(static_cast<int64_t>(of.size()))) - 1];
  };
  for (int i = 0; i < 80; ++i) {
    const std::vector<Spread> spreads = {Spread::narrow, Spread::wide, Spread::opposite, Spread::any,
                                         Spread::some};
    Case c{draw(70), {draw(60)}, 32 * draw(36), pick(std::vector{DType::f32, DType::bf16})};
    if (draw(2) == 1) c.ns.push_back(draw(40));
    c.add = draw(2) == 1;
    c.factor = pick(std::vector{1.0f, -0.75f, 3.0f});
    c.padding = draw(4) - 1;
    c.spread = pick(spreads);
    if (i == 0) c.m = 559, c.ns = {35}, c.k = 1056;
    if (i == 1) c.m = 20, c.ns = {2118}, c.k = 1056;
    const BlockFormat af = pick(formats), bf = pick(formats);
    SCOPED_TRACE(fmt::format("{} x {}, {}", name(af), name(bf), label(c)));
    const Problem p(c, af, bf);
    if (const char* why = cpu::why_not(BlockEngine::bf16_tiles, p.a_device, p.views[0])) GTEST_SKIP() << why;
    const Buffer got = result_of(BlockEngine::bf16_tiles, p);
    expect_of("bf16_tiles", p, got);
    if (HasFatalFailure()) return;
    Buffer packed = p.output();
    const Queue queue{.device = {}, .threads = 3};
    const Pack pack(queue, p.views);
    kernels::BlockMatmul args = p.args(packed);
    args.pack = pack.tensor;
    cpu::block_matmul_by(BlockEngine::bf16_tiles, queue, args);
    ASSERT_TRUE(got.same_bits(packed)) << "threads or the pack change bits";
  }
}

// Numbers just above 2^-126 and just below 2^128 count, what is below or above is zero or Inf.
TEST(BlockMatmul, TilesOfBf16ReachFromTheSmallestNormalNumberToTheLargest) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "an engine of the CPU";
  for (const char* format :
       {"mxfp4", "mxint4", "mxint8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"}) {
    const BlockFormat& f = block_format(format);
    const std::vector<double> table = oracle::enumerate_codes(f.element);
    Matrix a(f, 255, 32, 1, Spread::narrow), b(f, static_cast<int64_t>(table.size()), 32, 2, Spread::narrow);
    const int64_t row_bytes = 32 * f.bits() / 8;
    uint32_t one = 0;
    while (table[one] != 1) ++one;
    for (Matrix* m : {&a, &b}) std::fill(m->codes.begin(), m->codes.end(), uint8_t{0});
    for (int64_t r = 0; r < b.rows; ++r)
      b.codes[static_cast<size_t>(r * row_bytes)] = static_cast<uint8_t>(r);
    for (int64_t r = 0; r < a.rows; ++r)
      a.codes[static_cast<size_t>(r * row_bytes)] = static_cast<uint8_t>(one);
    // The matrix with all codes takes every scale in turn, the other the one that brings 1 back.
    for (uint32_t scale = 0; scale < 255; ++scale) {
      std::fill(b.scales.begin(), b.scales.end(), scale);
      std::fill(a.scales.begin(), a.scales.end(), std::min(253u, std::max(2u, 254 - scale)));
      for (const bool swapped : {false, true}) {
        const OnTheDevice a_device(a), b_device(b);
        const Packed left = swapped ? b_device : a_device, right = swapped ? a_device : b_device;
        if (const char* why = cpu::why_not(BlockEngine::bf16_tiles, left, right)) GTEST_SKIP() << why;
        Buffer y({left.rows, right.rows}, DType::f32);
        cpu::block_matmul_by(BlockEngine::bf16_tiles, {}, {.y = {y, false}, .a = left, .b = {&right, 1}});
        for (int64_t j = 0; j < b.rows; ++j) {
          const double number = std::ldexp(table[static_cast<size_t>(j)], static_cast<int>(scale) - 127);
          const double other = std::ldexp(1.0, static_cast<int>(a.scales[0]) - 127);
          const double want = std::fabs(number) < std::ldexp(1.0, -126)   ? 0
                              : std::fabs(number) >= std::ldexp(1.0, 128) ? std::copysign(INFINITY, number)
                                                                          : number * other;
          const double got = swapped ? y.get(j, 254) : y.get(254, j);
          ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want)))
              << format << " scale " << scale << " code " << j << ": " << got << " for " << want;
        }
      }
    }
  }
}

TEST(BlockMatmul, AScaleThatIsNaNMakesItsRowNaNAndNoOther) {
  for (const char* format : {"mxfp4", "mxint8", "mxint4", "nvfp4", "mxfp6_e2m3", "mxfp8_e4m3", "int8_row"})
    for (const int64_t m : {3, 40}) {
      SCOPED_TRACE(fmt::format("{} m {}", format, m));
      const BlockFormat& f = block_format(format);
      const auto nan = f.scale == ScaleType::e8m0 ? 255u : f.scale == ScaleType::e4m3 ? 0x7fu : 0x7fc00000u;
      Matrix a(f, m, 256, 1, Spread::narrow), b(f, 20, 256, 2, Spread::narrow);
      const auto per_row = static_cast<size_t>(f.scales_per_row(256));
      a.scales[2 * per_row + per_row - 1] = nan;
      b.scales[7 * per_row + per_row / 2] = nan;
      // Codes are zero there, as quantize() leaves them: it is the scale that says NaN.
      const size_t bytes = a.codes.size() / a.scales.size();
      std::fill_n(a.codes.begin() + static_cast<int64_t>((3 * per_row - 1) * bytes), bytes, uint8_t{0});
      std::fill_n(b.codes.begin() + static_cast<int64_t>((7 * per_row + per_row / 2) * bytes), bytes,
                  uint8_t{0});
      const OnTheDevice a_device(a), b_device(b);
      const Packed views[] = {b_device};
      Buffer y({m, 20}, DType::f32);
      OnDevice on;
      kernels::block_matmul(on.queue, {.y = {on(y), false}, .a = a_device, .b = views});
      on.fetch();
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < 20; ++j)
          ASSERT_EQ(std::isnan(y.get(i, j)), i == 2 || j == 7) << i << ", " << j;
    }
}

// Every pair of codes, each product alone in its block.
TEST(BlockMatmul, EveryPairOfCodesMultipliesExactly) {
  for (const char* format :
       {"mxfp4", "mxint4", "mxint8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"})
    for (const int64_t repeat : {1, 2}) {
      const BlockFormat& f = block_format(format);
      const int64_t count = int64_t{1} << f.bits();
      Matrix a(f, count * repeat, 32, 1, Spread::narrow), b(f, count, 32, 2, Spread::narrow);
      for (Matrix* m : {&a, &b}) {
        std::fill(m->codes.begin(), m->codes.end(), uint8_t{0});
        std::fill(m->scales.begin(), m->scales.end(), 127u);
        const int64_t row_bytes = 32 * f.bits() / 8;
        for (int64_t r = 0; r < m->rows; ++r)
          m->codes[static_cast<size_t>(r * row_bytes)] = static_cast<uint8_t>(r % count);
      }
      const OnTheDevice a_device(a), b_device(b);
      const Packed views[] = {b_device};
      Buffer y({a.rows, b.rows}, DType::f32);
      OnDevice on;
      kernels::block_matmul(on.queue, {.y = {on(y), false}, .a = a_device, .b = views});
      on.fetch();
      const oracle::BlockProduct want = oracle::block_matmul(a, b);
      for (int64_t i = 0; i < y.tensor().numel(); ++i) {
        const double w = want.value[static_cast<size_t>(i)];
        ASSERT_TRUE(y.get(i) == w || (std::isnan(y.get(i)) && std::isnan(w)))
            << format << " element " << i << ": " << y.get(i) << " for " << w;
      }
    }
}

// Bit for bit what unrotate() makes of the product in fp32, whether an engine does it or scratch is wanted.
TEST(BlockMatmul, TakesARotationAndAMaskBack) {
  struct Shapes {
    std::vector<int64_t> ns;
    int64_t k;
    int largest;  // rotation that divides them
  };
  // The latter two have an odd number of groups of 32 columns, and a mask that ends within 16, at a k that
  // engines take in pieces.
  const Shapes all_shapes[] = {{{100, 284}, 288, 128}, {{64, 96}, 1056, 32}, {{96, 40}, 1056, 0}};
  for (const Shapes& shapes : all_shapes)
    for (const char* format : {"mxfp4", "mxint8", "nvfp4", "mxfp6_e2m3", "mxfp8_e4m3"})
      for (const int64_t m : {3, 70})
        for (const int size : {0, 16, 32, 64, 128})
          for (const int variant : {0, 1, 2, 3}) {
            const DType dtype = variant % 2 ? DType::bf16 : DType::f32;
            const bool masked = variant < 2 || size == 0;
            if (size > shapes.largest) continue;
            SCOPED_TRACE(fmt::format("{} m {} k {} size {} variant {}", format, m, shapes.k, size, variant));
            const BlockFormat& f = block_format(format);
            const Problem p({m, shapes.ns, shapes.k, dtype, variant > 1, 0.5f, 3, Spread::wide}, f, f);
            std::vector<uint8_t> bits(static_cast<size_t>(m * p.n / 8));
            for (size_t i = 0; i < bits.size(); ++i)
              bits[i] = static_cast<uint8_t>(random_uniform(1, 2, static_cast<uint64_t>(i)) * 256);
            const DeviceCopy<uint8_t> mask(bits);
            const kernels::Rotation rotation{.size = size, .seed = 3, .stream = 4};
            const Tensor kept = masked ? mask.tensor({m, p.n / 8}) : Tensor{};
            Buffer product({m, p.n}, DType::f32), want = p.output();
            {
              OnDevice on;
              kernels::block_matmul(
                  on.queue, {.y = {on(product)}, .a = p.a_device, .b = p.views, .factor = p.c.factor});
              kernels::unrotate(
                  on.queue, {.y = {on(want), p.c.add}, .x = on(product), .mask = kept, .rotation = rotation});
              on.fetch();
            }
            for (const int threads : {1, 3}) {
              Buffer got = p.output(), scratch({m, p.n}, DType::f32);
              OnDevice on(threads);
              kernels::BlockMatmul args = p.args(on(got));
              args.rotation = rotation;
              args.mask = kept;
              const bool wants = kernels::block_matmul_wants_scratch(on.queue, args);
              if (wants) args.scratch = on(scratch);
              kernels::block_matmul(on.queue, args);
              on.fetch();
              EXPECT_TRUE(got.same_bits(want)) << threads << " threads" << (wants ? ", scratch" : "");
              EXPECT_TRUE(got.guards_intact());
            }
            if (HasFailure()) return;
          }
}

TEST(BlockMatmul, WhatDoesNotFitIsNamed) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "checked before a device is chosen";
  const auto make = [](const char* format, int64_t rows, int64_t cols) {
    return Matrix(block_format(format), rows, cols, 1, Spread::narrow);
  };
  const OnTheDevice a(make("mxfp4", 3, 64)), b(make("mxfp4", 5, 64)), wide(make("mxfp4", 5, 96)),
      nv(make("nvfp4", 5, 64));
  Buffer y({3, 5}, DType::f32), z({3, 4}, DType::f32);
  const auto message = [&](const Tensor& out, const Packed& left, std::vector<Packed> right,
                           const Tensor& pack = {}) {
    return refusal([&] {
      kernels::block_matmul({}, {.y = {out, false}, .a = left, .b = right, .pack = pack});
    });
  };
  EXPECT_EQ(message(y, a, {b}), "accepted");
  EXPECT_EQ(message(z, a, {b}), "[block_matmul] y must be (3, 5), got (3, 4)");
  EXPECT_EQ(message(y, a, {wide}), "[block_matmul] the inner dimensions differ: a is (3, 64), b (5, 96)");
  EXPECT_EQ(message(y, a, {nv}), "[block_matmul] blocks of a and b must be alike, got mxfp4 and nvfp4");
  EXPECT_EQ(
      message(y, a, {b, nv}),
      "[block_matmul] matrices b must be of one format and width, got nvfp4 64 wide beside mxfp4 64 wide");
  EXPECT_EQ(message(y, a, {}), "[block_matmul] no matrices b");
  EXPECT_NE(message(y, a, {b}, z).find("pack must be u8"), std::string::npos);
  EXPECT_EQ(refusal([&] {
              const Packed right[] = {b};
              kernels::block_matmul({}, {.y = {y}, .a = a, .b = right, .rotation = {.size = 32}});
            }),
            "[unrotate] a rotation of 32 does not divide rows of 5");
}

}  // namespace
}  // namespace osprey
