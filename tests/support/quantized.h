#pragma once
// quantize() on the tests' device, from numbers in host memory to what came out of it.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/quantize.h"
#include "tests/support/packed_copy.h"
#include "tests/support/test_bed.h"

namespace osprey::test {

using Floats = std::vector<float>;

inline Floats normal(int64_t count, uint64_t stream, double scale = 1) {
  Floats v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(scale * random_normal(11, stream, i));
  return v;
}
/// Rows whose sizes differ by far, so that scales do, with some zeros.
inline Floats uneven(int64_t rows, int64_t cols, uint64_t stream) {
  Floats v = normal(rows * cols, stream);
  for (size_t i = 0; i < v.size(); ++i) {
    const auto r = static_cast<int>(static_cast<int64_t>(i) / cols);
    v[i] = i % 13 == 5 ? 0 : std::ldexp(v[i], r % 7 * 3 - 9);
  }
  return v;
}
inline Floats transposed(const Floats& x, int64_t rows, int64_t cols) {
  Floats y(x.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      y[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * cols + c)];
  return y;
}
inline std::vector<bf16> to_bf16(const Floats& v) {
  std::vector<bf16> b;
  for (float f : v) b.push_back(osprey::to_bf16(f));
  return b;
}
inline std::vector<uint32_t> bits(const Floats& v) {
  std::vector<uint32_t> b;
  for (float f : v) b.push_back(float_bits(f));
  return b;
}

/// What came out of quantize().
struct Result {
  std::vector<uint8_t> codes;
  std::vector<uint32_t> scales;
  float tensor_scale = 0;
  std::vector<uint8_t> mask;
  bool operator==(const Result&) const = default;
};

struct Options {
  ScaleRule rule = ScaleRule::even;
  kernels::Rounding rounding = {};
  kernels::Rotation rotation = {};
  float prescale = 1;
  bool transpose = false;
  bool mask = true;
  bool add = false;  // to sums, which begin with -1
  int threads = 2;
  DType dtype = DType::f32;
  int64_t padding = 0;
};

/// y (rows, cols) from dense x, which is (cols, rows) when transposed.
class Quantized {
 public:
  Quantized(std::string_view format, int64_t rows, int64_t cols, const Floats& x, const Options& o = {})
      : rows_(rows),
        cols_(cols),
        y_(block_format(format), rows, cols, o.padding),
        x_(x),
        half_(to_bf16(x)),
        mask_(std::vector<uint8_t>(static_cast<size_t>(rows * cols / 8), 0x5a)) {
    kernels::Quantize a = arguments(o);
    const Shape shape = o.transpose ? Shape{cols, rows} : Shape{rows, cols};
    a.x = o.dtype == DType::bf16 ? half_.tensor(shape) : x_.tensor(shape);
    kernels::quantize(test_queue(o.threads), a);
    finish(o);
  }
  Quantized(std::string_view format, int64_t rows, int64_t cols, const Packed& x, const Options& o = {})
      : rows_(rows),
        cols_(cols),
        y_(block_format(format), rows, cols),
        x_(Floats{}),
        half_(std::vector<bf16>{}),
        mask_(std::vector<uint8_t>(static_cast<size_t>(rows * cols / 8), 0x5a)) {
    kernels::Quantize a = arguments(o);
    a.packed_x = x;
    kernels::quantize(test_queue(o.threads), a);
    finish(o);
  }

  Packed packed() const { return y_.packed(); }
  const Result& result() const { return result_; }
  Floats numbers(bool transpose = false, float factor = 1) const {
    const DeviceCopy<float> y(Floats(static_cast<size_t>(rows_ * cols_), -7.0f));
    kernels::dequantize(test_queue(), {.y = y.tensor(transpose ? Shape{cols_, rows_} : Shape{rows_, cols_}),
                                       .x = packed(),
                                       .transpose = transpose,
                                       .factor = factor});
    EXPECT_TRUE(y.guards_intact());
    return y.values();
  }
  /// Sums of measure_quantization().
  std::vector<double> measured(const Options& o = {}) const {
    const DeviceCopy<double> sums(std::vector<double>(kernels::quantization_sums, -1.0));
    kernels::measure_quantization(test_queue(o.threads), {.sums = sums.flat(),
                                                          .x = x_.tensor({rows_, cols_}),
                                                          .y = packed(),
                                                          .rotation = o.rotation,
                                                          .prescale = o.prescale,
                                                          .rule = o.rule,
                                                          .add = o.add});
    EXPECT_TRUE(sums.guards_intact());
    return sums.values();
  }

 private:
  kernels::Quantize arguments(const Options& o) const {
    kernels::Quantize a{.y = y_.packed()};
    a.transpose = o.transpose;
    a.rule = o.rule;
    a.rounding = o.rounding;
    a.rotation = o.rotation;
    a.prescale = o.prescale;
    if (o.mask && cols_ % 8 == 0) a.mask = mask_.tensor({rows_, cols_ / 8});
    return a;
  }
  void finish(const Options& o) {
    EXPECT_TRUE(y_.surroundings_intact());
    EXPECT_TRUE(mask_.guards_intact());
    result_ = {y_.codes(), y_.scales(), y_.tensor_scale(), {}};
    if (o.mask && cols_ % 8 == 0) result_.mask = mask_.values();
  }

  int64_t rows_, cols_;
  PackedCopy y_;
  DeviceCopy<float> x_;
  DeviceCopy<bf16> half_;
  DeviceCopy<uint8_t> mask_;
  Result result_;
};

/// Element i of packed codes.
inline uint32_t code_at(const std::vector<uint8_t>& codes, int bits_each, size_t i) {
  uint32_t code = 0;
  for (size_t b = 0; b < static_cast<size_t>(bits_each); ++b) {
    const size_t bit = i * static_cast<size_t>(bits_each) + b;
    code |= static_cast<uint32_t>(codes[bit / 8] >> bit % 8 & 1) << b;
  }
  return code;
}

/// Rows of a golden file.

constexpr kernels::Rotation rotation_of(int size, uint64_t seed = 3) {
  return {.size = size, .seed = seed, .stream = 4};
}

}  // namespace osprey::test
