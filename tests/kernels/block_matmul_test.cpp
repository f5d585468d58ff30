#include "kernels/block_matmul.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/core/random.h"
#include "kernels/cpu/block_product.h"
#include "tests/oracle/block_matmul.h"
#include "tests/support/device_copy.h"
#include "tests/support/on_device.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using cpu::BlockEngine;
using test::Buffer;
using test::DeviceCopy;
using test::OnDevice;
using test::refusal;

constexpr BlockEngine engines[] = {BlockEngine::definition, BlockEngine::dot, BlockEngine::few_rows,
                                   BlockEngine::tiles};

// Scales of e8m0 differ by at most 2^3; by up to 2^40; by anything, b's being the reciprocals of a's; by
// anything without regard to overflow.
enum class Spread { narrow, wide, opposite, any };

/// Random codes, all values of a byte among them, and random scales.
struct Matrix : oracle::BlockMatrix {
  Matrix(const BlockFormat& f, int64_t m, int64_t n_cols, uint64_t stream, Spread spread, bool is_b = false) {
    format = f;
    rows = m;
    cols = n_cols;
    uint64_t n = 0;
    const auto draw = [&] { return static_cast<uint32_t>(random_uniform(5, stream, n++) * 65536); };
    const PackedShapes shapes = packed_shapes(f, rows, cols, "a test's matrix");
    for (int64_t i = 0; i < shapes.codes.numel(); ++i) {
      auto code = static_cast<uint8_t>(draw());
      if (f.element == Element::e5m2 && (code & 0x7c) == 0x7c) code &= 0xbf;  // no Inf and NaN of elements
      if (f.element == Element::e4m3 && (code & 0x7f) == 0x7f) code &= 0xfe;
      codes.push_back(code);
    }
    const int64_t per_row = shapes.scales.numel() / shapes.scales[0];
    for (int64_t i = 0; i < shapes.scales.numel(); ++i) {
      const auto block = static_cast<uint32_t>(i % per_row);
      uint32_t e = 0;
      if (spread == Spread::narrow) e = 120 + draw() % 4;
      if (spread == Spread::wide) e = 100 + draw() % 41;
      if (spread == Spread::opposite) e = is_b ? 254 - block * 53 % 255 : block * 53 % 255;
      if (spread == Spread::any) e = draw() % 255;
      const float real =
          std::ldexp(1 + static_cast<float>(draw()) / 65536, static_cast<int>(draw() % 20) - 10);
      scales.push_back(f.scale == ScaleType::e8m0   ? e
                       : f.scale == ScaleType::e4m3 ? draw() % 127
                                                    : std::bit_cast<uint32_t>(real));
    }
    // Some blocks of zeros, whose scales are then 2^-127 as quantize() writes them.
    if (f.scale == ScaleType::e8m0)
      for (int64_t i = 3; i < shapes.scales.numel(); i += 7) {
        scales[static_cast<size_t>(i)] = 0;
        const int64_t bytes = f.block * f.bits() / 8;
        std::fill_n(codes.begin() + i * bytes, bytes, uint8_t{0});
      }
    if (shapes.has_tensor_scale) tensor_scale = 0.013f;
  }
};

/// A matrix on the device, its rows `padding` bytes apart.
class OnTheDevice {
 public:
  explicit OnTheDevice(const oracle::BlockMatrix& m, int64_t padding = 0)
      : packed_{.format = m.format, .rows = m.rows, .cols = m.cols} {
    const PackedShapes s = packed_shapes(m.format, m.rows, m.cols, "a test's matrix");
    std::vector<uint8_t> small(m.scales.begin(), m.scales.end());
    std::vector<float> real;
    for (uint32_t u : m.scales) real.push_back(std::bit_cast<float>(u));
    packed_.codes = put(bytes_, m.codes, s.codes, padding, uint8_t{0x5a});
    packed_.scales = s.scale_dtype == DType::u8 ? put(bytes_, small, s.scales, padding, uint8_t{255})
                                                : put(floats_, real, s.scales, padding, NAN);
    if (s.has_tensor_scale) packed_.tensor_scale = put(floats_, {m.tensor_scale}, {1, 1}, 0, NAN).view({1});
  }
  operator const Packed&() const { return packed_; }

 private:
  template <class T>
  static Tensor put(std::vector<std::unique_ptr<DeviceCopy<T>>>& to, const std::vector<T>& dense,
                    const Shape& shape, int64_t padding, T between) {
    std::vector<T> v;
    for (int64_t r = 0; r < shape[0]; ++r) {
      v.insert(v.end(), dense.begin() + r * shape[1], dense.begin() + (r + 1) * shape[1]);
      v.insert(v.end(), static_cast<size_t>(padding), between);
    }
    to.push_back(std::make_unique<DeviceCopy<T>>(v, padding));
    return to.back()->tensor({shape[0], shape[1] + padding}).columns(0, shape[1]);
  }
  std::vector<std::unique_ptr<DeviceCopy<uint8_t>>> bytes_;
  std::vector<std::unique_ptr<DeviceCopy<float>>> floats_;
  Packed packed_;
};

struct Case {
  int64_t m;
  std::vector<int64_t> ns;
  int64_t k;
  DType y = DType::f32;
  bool add = false;
  float factor = 1;
  int64_t padding = 0;
  Spread spread = Spread::narrow;
};

std::string label(const Case& c) {
  return fmt::format("m {} n {} k {} {}{} factor {} padding {} spread {}", c.m, fmt::join(c.ns, "+"), c.k,
                     name(c.y), c.add ? " add" : "", c.factor, c.padding, static_cast<int>(c.spread));
}

/// The operands of a case, and the result in double precision.
struct Problem {
  Problem(const Case& of, const BlockFormat& af, const BlockFormat& bf)
      : c(of),
        a(af, c.m, c.k, 1, c.spread),
        a_device(a, c.padding),
        n(std::accumulate(c.ns.begin(), c.ns.end(), int64_t{0})) {
    for (size_t i = 0; i < c.ns.size(); ++i) {
      b.emplace_back(bf, c.ns[i], c.k, 2 + i, c.spread, true);
      if (bf.scale == ScaleType::e4m3) b.back().tensor_scale *= static_cast<float>(i + 1);
      b_device.push_back(std::make_unique<OnTheDevice>(b.back(), c.padding));
      views.push_back(*b_device.back());
    }
  }
  Buffer output() const {
    Buffer y({c.m, n}, c.y, c.padding);
    if (c.add) y.fill(9);
    return y;
  }
  kernels::BlockMatmul args(const Tensor& y) const {
    return {.y = {y, c.add}, .a = a_device, .b = views, .factor = c.factor};
  }
  void expect(const Buffer& y) const {
    const std::vector<double> before = output().values();
    int64_t first = 0;
    for (const Matrix& part : b) {
      const oracle::BlockProduct want = oracle::block_matmul(a, part);
      for (int64_t i = 0; i < c.m; ++i)
        for (int64_t j = 0; j < part.rows; ++j) {
          const auto at = static_cast<size_t>(i * part.rows + j);
          if (want.scales[at] >= std::ldexp(1.0, 127) || want.magnitude[at] > 1e38) continue;  // overflows
          const double factor = static_cast<double>(c.factor);
          const double w =
              factor * want.value[at] + (c.add ? before[static_cast<size_t>(i * n + first + j)] : 0.0);
          const double got = y.get(i, first + j);
          const double roundings = static_cast<double>(c.k) / 16 + 8;
          const double slack = 6e-8 * roundings * std::fabs(factor) * want.magnitude[at] + 1e-37 +
                               std::fabs(w) * (c.y == DType::bf16 ? 1.0 / 256 : 1e-6);
          ASSERT_NEAR(got, w, slack) << i << ", " << first + j;
        }
      first += part.rows;
    }
    EXPECT_TRUE(y.guards_intact());
  }

  Case c;
  Matrix a;
  OnTheDevice a_device;
  int64_t n;
  std::vector<Matrix> b;
  std::vector<std::unique_ptr<OnTheDevice>> b_device;
  std::vector<Packed> views;
};

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

std::vector<Case> cases(const BlockFormat& f, const BlockFormat& other) {
  const bool block = f.granularity == Granularity::block;
  const auto up = [&](int64_t k) { return block ? (k + f.block - 1) / f.block * f.block : k; };
  const int64_t odd = f.bits() == 8 && other.bits() == 8 ? 515 : 518;
  return {{1, {16}, up(32)},
          {1, {70}, up(block ? 544 : odd), DType::bf16, false, 1, 3, Spread::wide},
          {3, {5, 20, 1}, up(64), DType::f32, true, 0.5f, 1},
          {16, {40}, up(288), DType::bf16, true, -2, 0, Spread::wide},
          {17, {33}, up(block ? 128 : 34), DType::f32, false, 1, 5, Spread::wide},
          {33, {16, 16, 7}, up(288), DType::bf16, false, 3, 0, Spread::narrow},
          {70, {9, 31}, up(block ? 1056 : odd), DType::f32, true, 1, 0, Spread::wide},
          {21, {20}, up(640), DType::f32, false, 1, 0, Spread::opposite},
          {35, {33}, up(256), DType::f32, false, 1, 2, Spread::any}};
}

// Formats of a beside those of b: each with itself, and 8-bit inputs of 4-bit layers.
std::vector<std::pair<BlockFormat, BlockFormat>> pairs() {
  std::vector<std::pair<BlockFormat, BlockFormat>> all;
  for (const NamedFormat& f : block_formats()) all.emplace_back(f.format, f.format);
  for (const auto& [a, b] : {std::pair{"mxint8", "mxfp4"},
                             {"mxint8", "mxint4"},
                             {"mxfp4", "mxint8"},
                             {"mxfp4", "mxint4"},
                             {"int8_row", "int4_row"},
                             {"int8_g64", "int4_g64"},
                             {"mxfp8_e4m3", "mxfp4"},
                             {"nvfp4", "nvint4"},
                             {"int8_g32", "mxfp4"}})
    all.emplace_back(block_format(a), block_format(b));
  return all;
}

TEST(BlockMatmul, AgreesWithTheOracleInEveryFormat) {
  for (const auto& [af, bf] : pairs())
    for (const Case& c : cases(af, bf)) {
      SCOPED_TRACE(fmt::format("{} x {}, {}", name(af), name(bf), label(c)));
      const Problem p(c, af, bf);
      std::vector<Buffer> results;
      for (const bool packed : {false, true})
        for (const int threads : {1, 2, 3}) {
          results.push_back(p.output());
          OnDevice on(threads);
          const Pack pack(on.queue, p.views);
          kernels::BlockMatmul args = p.args(on(results.back()));
          if (packed && pack.bytes > 0) args.pack = pack.tensor;
          kernels::block_matmul(on.queue, args);
          on.fetch();
          EXPECT_TRUE(results.back().same_bits(results.front())) << "threads or the pack change bits";
        }
      p.expect(results.front());
      if (HasFatalFailure()) return;
    }
}

Buffer result_of(BlockEngine engine, const Problem& p) {
  Buffer y = p.output();
  cpu::block_matmul_by(engine, {.device = {}, .threads = 2}, p.args(y));
  return y;
}

bool bits_differ_by_tiles(const BlockFormat& a, const BlockFormat& b) {
  return a.bits() + b.bits() <= 12 && a.scale == ScaleType::e8m0 && b.scale == ScaleType::e8m0;
}

class BlockEngines : public testing::TestWithParam<BlockEngine> {};

TEST_P(BlockEngines, AgreeWithTheOracleAndAllButOneBitForBit) {
  if (test::test_device().kind != DeviceKind::cpu) GTEST_SKIP() << "engines of the CPU";
  const Matrix probe(block_format("mxfp4"), 1, 32, 1, Spread::narrow);
  const OnTheDevice on_device(probe);
  if (const char* why = cpu::why_not(GetParam(), on_device, on_device)) GTEST_SKIP() << why;
  int compared = 0;
  for (const auto& [af, bf] : pairs())
    for (const Case& c : cases(af, bf)) {
      SCOPED_TRACE(fmt::format("{}: {} x {}, {}", cpu::name(GetParam()), name(af), name(bf), label(c)));
      const Problem p(c, af, bf);
      if (cpu::why_not(GetParam(), p.a_device, p.views[0])) continue;
      const Buffer got = result_of(GetParam(), p);
      p.expect(got);
      if (HasFatalFailure()) return;
      if (GetParam() == BlockEngine::tiles && bits_differ_by_tiles(af, bf)) continue;
      // Payloads of NaN, where scales overflow, are nobody's promise.
      const std::vector<double> a = got.values(), b = result_of(BlockEngine::definition, p).values();
      for (size_t i = 0; i < a.size(); ++i)
        ASSERT_TRUE(std::bit_cast<uint64_t>(a[i]) == std::bit_cast<uint64_t>(b[i]) ||
                    (std::isnan(a[i]) && std::isnan(b[i])))
            << "element " << i << ": " << a[i] << " and by definition " << b[i];
      ++compared;
    }
  EXPECT_GT(compared, 50);
}
INSTANTIATE_TEST_SUITE_P(, BlockEngines, testing::ValuesIn(engines),
                         [](const auto& engine) { return std::string(cpu::name(engine.param)); });

// Rows that share a tile with a row of wide scales, or none, are what they are alone.
TEST(BlockMatmul, ARowDoesNotDependOnItsNeighbours) {
  const BlockFormat& f = block_format("mxfp4");
  const Problem p({64, {40}, 512, DType::f32, false, 1, 0, Spread::wide}, f, f);
  Buffer all = p.output(), some({18, 40}, DType::f32);
  OnDevice on;
  kernels::block_matmul(on.queue, p.args(on(all)));
  kernels::BlockMatmul args = p.args(on(some));
  args.a = args.a.row_range(5, 23);
  kernels::block_matmul(on.queue, args);
  on.fetch();
  for (int64_t r = 0; r < 18; ++r)
    for (int64_t j = 0; j < 40; ++j) ASSERT_EQ(some.get(r, j), all.get(r + 5, j)) << r << ", " << j;
}

TEST(BlockMatmul, AScaleThatIsNaNMakesItsRowNaNAndNoOther) {
  for (const char* format : {"mxfp4", "mxint8", "mxint4", "nvfp4", "mxfp8_e4m3", "int8_row"})
    for (const int64_t m : {3, 40}) {
      SCOPED_TRACE(fmt::format("{} m {}", format, m));
      const BlockFormat& f = block_format(format);
      const auto nan = f.scale == ScaleType::e8m0 ? 255u : f.scale == ScaleType::e4m3 ? 0x7fu : 0x7fc00000u;
      Matrix a(f, m, 256, 1, Spread::narrow), b(f, 20, 256, 2, Spread::narrow);
      const auto per_row = static_cast<size_t>(f.scales_per_row(256));
      a.scales[2 * per_row + per_row - 1] = nan;
      b.scales[7 * per_row + per_row / 2] = nan;
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
  for (const char* format : {"mxfp4", "mxint4", "mxint8"})
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
      for (int64_t i = 0; i < y.tensor().numel(); ++i)
        ASSERT_EQ(y.get(i), want.value[static_cast<size_t>(i)]) << format;
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
}

}  // namespace
}  // namespace osprey
