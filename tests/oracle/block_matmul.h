#pragma once
// Products of packed matrices in double precision; shares no arithmetic with kernels/.

#include <bit>
#include <cmath>
#include <vector>

#include "tests/oracle/quantize.h"

namespace osprey::oracle {

/// Dense codes and scales of a packed matrix on the host: bytes of codes as Packed has them, codes of scales
/// or bits of f32 ones.
struct BlockMatrix {
  BlockFormat format;
  int64_t rows, cols;
  std::vector<uint8_t> codes;
  std::vector<uint32_t> scales;
  float tensor_scale = 1;

  uint32_t code(int64_t row, int64_t col) const {
    const int64_t bit = (row * cols + col) * format.bits();  // rows are whole bytes
    const auto byte = static_cast<size_t>(bit / 8);
    const uint32_t two = codes[byte] | static_cast<uint32_t>(byte + 1 < codes.size() ? codes[byte + 1] : 0)
                                           << 8;
    return two >> (bit % 8) & ((1u << format.bits()) - 1);
  }
  double scale(int64_t row, int64_t col) const {
    const bool block = format.granularity == Granularity::block;
    const int64_t i = format.granularity == Granularity::tensor
                          ? 0
                          : row * format.scales_per_row(cols) + (block ? col / format.block : 0);
    const uint32_t stored = scales[static_cast<size_t>(i)];
    if (format.scale == ScaleType::e8m0)
      return stored == 255 ? NAN : std::ldexp(1.0, static_cast<int>(stored) - 127);
    static const std::vector<double> e4m3 = enumerate_codes(Element::e4m3);
    if (format.scale == ScaleType::e4m3) return e4m3[stored];
    return std::bit_cast<float>(stored);
  }
};

struct BlockProduct {
  std::vector<double> value;      // (M, N)
  std::vector<double> magnitude;  // sums of |a||b|
  std::vector<double> scales;     // the largest product of two scales
};

/// What becomes of an operand's numbers that are no normal fp32: they are kept, or are zero and Inf as in
/// bf16 without denormals.
enum class Range { any, normal };

inline BlockProduct block_matmul(const BlockMatrix& a, const BlockMatrix& b, Range range = Range::any) {
  struct Dense {
    std::vector<double> value, scale;
  };
  const auto dense = [&](const BlockMatrix& m) {
    const std::vector<double> table = enumerate_codes(m.format.element);
    Dense d;
    for (int64_t r = 0; r < m.rows; ++r)
      for (int64_t c = 0; c < m.cols; ++c) {
        d.scale.push_back(m.scale(r, c));
        d.value.push_back(table[m.code(r, c)] * d.scale.back() * static_cast<double>(m.tensor_scale));
        double& v = d.value.back();
        if (range == Range::normal && std::fabs(v) < std::ldexp(1.0, -126)) v = 0;
        if (range == Range::normal && std::fabs(v) >= std::ldexp(1.0, 128)) v = std::copysign(INFINITY, v);
      }
    return d;
  };
  const Dense left = dense(a), right = dense(b);
  BlockProduct p;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j) {
      double sum = 0, size = 0, scales = 0;
      for (int64_t k = 0; k < a.cols; ++k) {
        const auto x = static_cast<size_t>(i * a.cols + k), y = static_cast<size_t>(j * a.cols + k);
        sum += left.value[x] * right.value[y];
        size += std::fabs(left.value[x] * right.value[y]);
        scales = std::max(scales, std::fabs(left.scale[x] * right.scale[y]));
      }
      p.value.push_back(sum);
      p.magnitude.push_back(size);
      p.scales.push_back(scales);
    }
  return p;
}

}  // namespace osprey::oracle
