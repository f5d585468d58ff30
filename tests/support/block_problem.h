#pragma once
// Products of packed matrices as tests state them: operands on the device, and the result in double
// precision.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/block_matmul.h"
#include "kernels/core/random.h"
#include "tests/oracle/block_matmul.h"
#include "tests/support/device_copy.h"
#include "tests/support/on_device.h"

namespace osprey::test {

/// Scales of e8m0 differ by at most 2^3; by up to 2^40; by anything, b's being the reciprocals of a's; by
/// anything without regard to overflow; by at most 2^9 but for every fifth row of a and seventh of b, where
/// one differs by more than 2^14.
enum class Spread { narrow, wide, opposite, any, some };

/// Random codes, all values of a byte among them, and random scales.
struct BlockMatrix : oracle::BlockMatrix {
  BlockMatrix(const BlockFormat& f, int64_t m, int64_t n_cols, uint64_t stream, Spread spread,
              bool is_b = false) {
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
      if (f.element == Element::int8 && e == 254) e = 253;  // -2 * 2^127 is no fp32 number
      if (spread == Spread::some) {
        const int64_t row = i / per_row;
        e = block == 1 && (is_b ? row % 7 == 3 : row % 5 == 2) ? 145 : 118 + draw() % 10;
      }
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
class PackedOnDevice {
 public:
  explicit PackedOnDevice(const oracle::BlockMatrix& m, int64_t padding = 0)
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

struct BlockCase {
  int64_t m;
  std::vector<int64_t> ns;
  int64_t k;
  DType y = DType::f32;
  bool add = false;
  float factor = 1;
  int64_t padding = 0;
  Spread spread = Spread::narrow;
};

inline std::string label(const BlockCase& c) {
  return fmt::format("m {} n {} k {} {}{} factor {} padding {} spread {}", c.m, fmt::join(c.ns, "+"), c.k,
                     name(c.y), c.add ? " add" : "", c.factor, c.padding, static_cast<int>(c.spread));
}

/// The operands of a case, and the result in double precision.
struct BlockProblem {
  BlockProblem(const BlockCase& of, const BlockFormat& af, const BlockFormat& bf)
      : c(of),
        a(af, c.m, c.k, 1, c.spread),
        a_device(a, c.padding),
        n(std::accumulate(c.ns.begin(), c.ns.end(), int64_t{0})) {
    for (size_t i = 0; i < c.ns.size(); ++i) {
      b.emplace_back(bf, c.ns[i], c.k, 2 + i, c.spread, true);
      if (bf.scale == ScaleType::e4m3) b.back().tensor_scale *= static_cast<float>(i + 1);
      b_device.push_back(std::make_unique<PackedOnDevice>(b.back(), c.padding));
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
  /// `share`: of sum |a||b|, what the engine may be off by beside roundings of fp32. Range::normal: the
  /// engine takes denormals for zero, sums among them.
  void expect(const Buffer& y, double share = 0, oracle::Range range = oracle::Range::any) const {
    const double lost = range == oracle::Range::normal ? std::ldexp(static_cast<double>(2 * c.k), -126) : 0.0;
    const std::vector<double> before = output().values();
    int64_t first = 0;
    for (const BlockMatrix& part : b) {
      const oracle::BlockProduct want = oracle::block_matmul(a, part, range);
      for (int64_t i = 0; i < c.m; ++i)
        for (int64_t j = 0; j < part.rows; ++j) {
          const auto at = static_cast<size_t>(i * part.rows + j);
          if (want.scales[at] >= std::ldexp(1.0, 127) || want.magnitude[at] > 1e38) continue;  // overflows
          const double factor = static_cast<double>(c.factor);
          const double w =
              factor * want.value[at] + (c.add ? before[static_cast<size_t>(i * n + first + j)] : 0.0);
          const double got = y.get(i, first + j);
          if (!std::isfinite(w)) {
            ASSERT_FALSE(std::isfinite(got)) << i << ", " << first + j << ": " << got << " for " << w;
            continue;
          }
          const double roundings = static_cast<double>(c.k) / 16 + 8;
          const double slack = (6e-8 * roundings + share) * std::fabs(factor) * want.magnitude[at] + 1e-37 +
                               lost * std::fabs(factor) +
                               std::fabs(w) * (c.y == DType::bf16 ? 1.0 / 256 : 1e-6);
          ASSERT_NEAR(got, w, slack) << i << ", " << first + j;
        }
      first += part.rows;
    }
    EXPECT_TRUE(y.guards_intact());
  }

  BlockCase c;
  BlockMatrix a;
  PackedOnDevice a_device;
  int64_t n;
  std::vector<BlockMatrix> b;
  std::vector<std::unique_ptr<PackedOnDevice>> b_device;
  std::vector<Packed> views;
};

inline std::vector<BlockCase> block_cases(const BlockFormat& f, const BlockFormat& other) {
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
inline std::vector<std::pair<BlockFormat, BlockFormat>> block_pairs() {
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

}  // namespace osprey::test
