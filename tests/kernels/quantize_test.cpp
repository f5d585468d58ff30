#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <fstream>
#include <sstream>

#include "kernels/core/random.h"
#include "tests/oracle/quantize.h"
#include "tests/support/packed_copy.h"
#include "tests/support/paths.h"
#include "tests/support/refusal.h"
#include "tests/support/test_bed.h"

using namespace osprey;
using namespace osprey::test;
using Floats = std::vector<float>;
using Kind = kernels::Rounding::Kind;

namespace {

Floats normal(int64_t count, uint64_t stream, double scale = 1) {
  Floats v(static_cast<size_t>(count));
  for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(scale * random_normal(11, stream, i));
  return v;
}
/// Rows whose sizes differ by far, so that scales do, with some zeros.
Floats uneven(int64_t rows, int64_t cols, uint64_t stream) {
  Floats v = normal(rows * cols, stream);
  for (size_t i = 0; i < v.size(); ++i) {
    const auto r = static_cast<int>(static_cast<int64_t>(i) / cols);
    v[i] = i % 13 == 5 ? 0 : std::ldexp(v[i], r % 7 * 3 - 9);
  }
  return v;
}
Floats transposed(const Floats& x, int64_t rows, int64_t cols) {
  Floats y(x.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      y[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * cols + c)];
  return y;
}
std::vector<bf16> to_bf16(const Floats& v) {
  std::vector<bf16> b;
  for (float f : v) b.push_back(osprey::to_bf16(f));
  return b;
}
std::vector<uint32_t> bits(const Floats& v) {
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
uint32_t code_at(const std::vector<uint8_t>& codes, int bits_each, size_t i) {
  uint32_t code = 0;
  for (size_t b = 0; b < static_cast<size_t>(bits_each); ++b) {
    const size_t bit = i * static_cast<size_t>(bits_each) + b;
    code |= static_cast<uint32_t>(codes[bit / 8] >> bit % 8 & 1) << b;
  }
  return code;
}

/// Rows of a golden file.
struct GoldenBlock {
  Floats x, y;
};
std::vector<GoldenBlock> golden_blocks(const std::string& format) {
  std::ifstream in(source_dir() + "/tests/golden/mx/" + format + ".txt");
  std::vector<GoldenBlock> blocks;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    GoldenBlock b;
    Floats* to = &b.x;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (word == "|")
        to = &b.y;
      else
        to->push_back(bits_float(static_cast<uint32_t>(std::stoul(word, nullptr, 16))));
    }
    blocks.push_back(b);
  }
  return blocks;
}

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string s;
  for (uint8_t b : bytes) s += fmt::format("{:02x}", b);
  return s;
}

/// The size of the block that element i is in: evenly spread over an octave.
double octave(size_t i, int64_t count, int64_t block) {
  const auto b = static_cast<int64_t>(i) / block;
  return std::exp2(static_cast<double>(b * block) / static_cast<double>(count));
}

constexpr kernels::Rotation rotation_of(int size, uint64_t seed = 3) {
  return {.size = size, .seed = seed, .stream = 4};
}

}  // namespace

TEST(Quantize, EveryFormatIsWhatTheOracleFindsElementByElement) {
  const int64_t rows = 5, cols = 384;
  const Floats x = uneven(rows, cols, 1);
  for (const NamedFormat& named : block_formats())
    for (ScaleRule rule : {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil}) {
      SCOPED_TRACE(fmt::format("{} rule {}", named.name, static_cast<int>(rule)));
      const BlockFormat& f = named.format;
      const Quantized q(named.name, rows, cols, x, {.rule = rule});
      const Floats numbers = q.numbers();
      float largest = 0;
      for (float v : x) largest = std::max(largest, std::abs(v));
      const float top = static_cast<float>(oracle::largest(f.element));
      const float up = 448 * top / largest, tensor = f.scale == ScaleType::e4m3 ? 1 / up : 1.0f;
      if (f.scale == ScaleType::e4m3) {
        EXPECT_EQ(q.result().tensor_scale, tensor);
      }
      const int64_t block = f.granularity == Granularity::block ? f.block : cols;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t b = 0; b < cols / block; ++b) {
          float a = 0;
          for (int64_t c = b * block; c < (b + 1) * block; ++c)
            a = std::max(a, std::abs(x[static_cast<size_t>(r * cols + c)]));
          if (f.granularity == Granularity::tensor) a = largest;
          uint32_t want_scale;
          float scale, inverse;
          if (f.scale == ScaleType::e8m0) {
            want_scale = oracle::scale_code(f.element, rule, a);
            scale = static_cast<float>(std::ldexp(1.0, static_cast<int>(want_scale) - 127));
            inverse = 1 / scale;
          } else if (f.scale == ScaleType::e4m3) {
            want_scale = oracle::nearest_code(Element::e4m3, a * (up * (1 / top)));
            scale = static_cast<float>(oracle::code_values(Element::e4m3)[want_scale]);
            inverse = 1 / (scale * tensor);
          } else {
            scale = a / top;
            want_scale = float_bits(scale);
            inverse = 1 / scale;
          }
          const int64_t place = f.granularity == Granularity::tensor ? 0 : r * (cols / block) + b;
          ASSERT_EQ(q.result().scales[static_cast<size_t>(place)], want_scale);
          for (int64_t c = b * block; c < (b + 1) * block; ++c) {
            const auto i = static_cast<size_t>(r * cols + c);
            const float v = x[i] * inverse;
            const uint32_t code = code_at(q.result().codes, f.bits(), i);
            ASSERT_EQ(code, oracle::nearest_code(f.element, v)) << "element " << i;
            const double number = oracle::code_values(f.element)[code] * static_cast<double>(scale);
            ASSERT_EQ(numbers[i], static_cast<float>(static_cast<float>(number) * tensor));
            const bool kept = f.scale == ScaleType::f32 || std::abs(v) <= top;
            ASSERT_EQ(q.result().mask[i / 8] >> i % 8 & 1, kept) << "element " << i;
          }
        }
    }
}

TEST(Quantize, MxFormatsAreTheGoldenVectorsBitForBit) {
  for (const std::string format :
       {"mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8", "mxint4"}) {
    SCOPED_TRACE(format);
    const std::vector<GoldenBlock> blocks = golden_blocks(format);
    ASSERT_EQ(blocks.size(), 96u);
    Floats x, y;
    for (const GoldenBlock& b : blocks) {
      x.insert(x.end(), b.x.begin(), b.x.end());
      y.insert(y.end(), b.y.begin(), b.y.end());
    }
    const Quantized q(format, 96, 32, x, {.rule = ScaleRule::floor});
    const Floats got = q.numbers();
    for (size_t i = 0; i < y.size(); ++i) {
      // Integers have no -0, and the vectors have none for an input of -0; ours, as the hardware's, has.
      const bool one_zero = y[i] == 0 && (format.starts_with("mxint") || x[i] == 0);
      ASSERT_TRUE(one_zero ? got[i] == 0 : float_bits(got[i]) == float_bits(y[i]))
          << "block " << i / 32 << " of " << x[i];
    }
  }
}

TEST(Quantize, BytesOfFourBitBlocksAreTheGoldenOnesForEveryRule) {
  std::ifstream in(source_dir() + "/tests/golden/fp4_block_vectors.txt");
  Floats x, second;
  int compared = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (line.starts_with(" x fp32")) {
      x.clear();
      words.str(line.substr(line.find(':') + 1));
      words.clear();
      while (words >> word) x.push_back(bits_float(static_cast<uint32_t>(std::stoul(word, nullptr, 16))));
      ASSERT_EQ(x.size(), 32u);
      if (line.find("40167f40") != std::string::npos) second = x;
    } else if (line.find("E8M0=0x") != std::string::npos) {
      SCOPED_TRACE(line);
      Options o;
      o.rule = word == "FLOOR"  ? ScaleRule::floor
               : word == "CEIL" ? ScaleRule::ceil
               : word == "EVEN" ? ScaleRule::even
                                : ScaleRule::rceil;
      if (word == "ABSMAX_3/4") o.prescale = 0.75f;
      const Quantized q("mxfp4", 1, 32, x, o);
      EXPECT_EQ(q.result().scales[0], std::stoul(line.substr(line.find("=0x") + 3, 2), nullptr, 16));
      const size_t at = line.find("idx)=") + 5;
      EXPECT_EQ(hex(q.result().codes), line.substr(at, 32));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 15);
  // nvfp4 of the second block, in a matrix whose largest element is 4.
  Floats with_four = second;
  with_four.resize(64, 0.0f);
  with_four[63] = 4;
  const Quantized q("nvfp4", 1, 64, with_four);
  EXPECT_EQ(q.result().scales[0], 0x7cu);
  EXPECT_EQ(q.result().scales[1], 0x7cu);
  EXPECT_EQ(q.result().tensor_scale, 1.0f / 672.0f);
  EXPECT_EQ(hex(q.result().codes).substr(0, 32), "7606fdce6467d0ef4c7606fdce6467e8");
}

TEST(Quantize, ErrorsOfGaussianBlocksAreTheKnownOnes) {
  struct Row {
    const char* format;
    ScaleRule rule;
    Kind rounding;
    float prescale;
    double relative;
  };
  const bool slow = test_device().kind == DeviceKind::cuda;  // a GPU's threads may be played by one core
  for (const Row& row : {
           Row{"mxfp4", ScaleRule::floor, Kind::nearest_even, 1, 1.33e-2},
           Row{"mxfp4", ScaleRule::rceil, Kind::nearest_even, 1, 1.38e-2},
           Row{"mxfp4", ScaleRule::ceil, Kind::nearest_even, 1, 1.96e-2},
           Row{"mxfp4", ScaleRule::even, Kind::nearest_even, 1, 1.26e-2},
           Row{"mxfp4", ScaleRule::mse, Kind::nearest_even, 1, 1.34e-2},
           Row{"mxfp4", ScaleRule::rceil, Kind::nearest_even, 0.75f, 1.375e-2},
           Row{"mxfp4", ScaleRule::rceil, Kind::stochastic, 0.75f, 2.78e-2},
           Row{"nvfp4", ScaleRule::even, Kind::nearest_even, 1, 9.0e-3},
           Row{"nvfp4", ScaleRule::four_over_six, Kind::nearest_even, 1, 7.5e-3},
           Row{"nvint4", ScaleRule::even, Kind::nearest_even, 1, 7.5e-3},
           Row{"mxint4", ScaleRule::floor, Kind::nearest_even, 1, 1.61e-2},
           Row{"mxint4", ScaleRule::rceil, Kind::nearest_even, 1, 2.10e-2},
           Row{"mxint8", ScaleRule::floor, Kind::nearest_even, 1, 6.3e-5},
           Row{"mxfp8_e4m3", ScaleRule::floor, Kind::nearest_even, 1, 9.1e-4},
           Row{"mxfp8_e4m3", ScaleRule::rceil, Kind::nearest_even, 1, 7.0e-4},
           Row{"mxfp8_e5m2", ScaleRule::floor, Kind::nearest_even, 1, 2.96e-3},
           Row{"mxfp8_e5m2", ScaleRule::rceil, Kind::nearest_even, 1, 2.77e-3},
           Row{"mxfp6_e2m3", ScaleRule::floor, Kind::nearest_even, 1, 8.0e-4},
           Row{"mxfp6_e2m3", ScaleRule::rceil, Kind::nearest_even, 1, 8.1e-4},
           Row{"mxfp6_e3m2", ScaleRule::floor, Kind::nearest_even, 1, 2.93e-3},
           Row{"mxfp6_e3m2", ScaleRule::rceil, Kind::nearest_even, 1, 2.78e-3},
       }) {
    const BlockFormat& f = block_format(row.format);
    const int64_t rows = slow ? 64 : 512, cols = 64 * f.block;
    Options o{.rule = row.rule, .rounding = {row.rounding, 5, 6}, .prescale = row.prescale};
    Floats x = normal(rows * cols, 77);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(octave(i, rows * cols, f.block));
    const Quantized q(row.format, rows, cols, x, o);
    const Floats y = q.numbers(false, 1 / row.prescale);
    double squares = 0, errors = 0;  // as if all blocks were of one size
    for (size_t i = 0; i < x.size(); ++i) {
      const double size = octave(i, rows * cols, f.block);
      squares += std::pow(static_cast<double>(x[i]) / size, 2);
      errors += std::pow((static_cast<double>(y[i]) - static_cast<double>(x[i])) / size, 2);
    }
    EXPECT_NEAR(errors / squares / row.relative, 1, slow ? 0.04 : 0.02)
        << row.format << " rule " << static_cast<int>(row.rule) << " prescale " << row.prescale;
    const std::vector<double> sums = q.measured(o);
    EXPECT_NEAR(sums[1] / sums[0] / row.relative, 1, 0.06) << "weighted by size";
    EXPECT_EQ(sums[2], static_cast<double>(rows * cols));
  }
}

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
        SCOPED_TRACE(fmt::format("{} {} rule {}", f.name, size, static_cast<int>(rule)));
        Floats x(128, size);
        x[3] = -size / 2;
        for (float v : Quantized(f.name, 1, 128, x, {.rule = rule}).numbers()) {
          EXPECT_TRUE(std::isfinite(v));
          EXPECT_LE(std::abs(v), 2 * size);
        }
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

TEST(Quantize, RuleStatsPutsTwiceTheMeanMagnitudeAtTheLargestElement) {
  const int64_t rows = 5, cols = 384;
  Floats x = uneven(rows, cols, 31);
  for (size_t i = 0; i < x.size(); i += 50) x[i] *= 30;  // these are clipped
  std::fill_n(x.begin() + 3 * cols, cols, 0.0f);
  for (const NamedFormat& named : block_formats()) {
    const BlockFormat& f = named.format;
    if (f.scale != ScaleType::f32) continue;
    for (bool transpose : {false, true})
      for (DType dtype : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(fmt::format("{} {} {}", named.name, transpose, name(dtype)));
        Floats numbers = x;
        if (dtype == DType::bf16)
          for (float& v : numbers) v = to_float(osprey::to_bf16(v));
        const Options o{.rule = ScaleRule::stats, .transpose = transpose, .dtype = dtype};
        const Quantized q(named.name, rows, cols, transpose ? transposed(x, rows, cols) : x, o);
        const int64_t block = f.granularity == Granularity::block ? f.block : cols;
        const double top = oracle::largest(f.element);
        double clipped = 0;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t b = 0; b < cols / block; ++b) {
            const auto begin =
                numbers.begin() + (f.granularity == Granularity::tensor ? 0 : r * cols + b * block);
            const int64_t sharing = f.granularity == Granularity::tensor ? rows * cols : block;
            const double want = oracle::stats_scale(f.element, std::vector<double>(begin, begin + sharing));
            const int64_t place = f.granularity == Granularity::tensor ? 0 : r * (cols / block) + b;
            const float scale = bits_float(q.result().scales[static_cast<size_t>(place)]);
            // Magnitudes are cut to 2^-20 of the largest, which may be 1000 times the mean.
            ASSERT_NEAR(scale, want, 1e-3 * want);
            for (int64_t c = b * block; c < (b + 1) * block; ++c) {
              const auto i = static_cast<size_t>(r * cols + c);
              const float v = scale > 0 ? numbers[i] * (1 / scale) : 0;
              ASSERT_EQ(code_at(q.result().codes, f.bits(), i), oracle::nearest_code(f.element, v)) << i;
              const bool kept = std::abs(static_cast<double>(v)) <= top;
              ASSERT_EQ(q.result().mask[i / 8] >> i % 8 & 1, kept) << i;
              clipped += !kept;
            }
          }
        EXPECT_GT(clipped, 20);
        if (!transpose && dtype == DType::f32) EXPECT_EQ(q.measured(o)[3], clipped);
      }
  }
}

TEST(Quantize, RuleStatsKeepsNansToWhatSharesTheirScale) {
  const int64_t rows = 3, cols = 128;
  Floats x = normal(rows * cols, 32);
  x[cols + 70] = NAN;
  x[2 * cols] = INFINITY;
  const Options o{.rule = ScaleRule::stats};
  const Floats by_row = Quantized("int8_row", rows, cols, x, o).numbers(),
               by_block = Quantized("int4_g64", rows, cols, x, o).numbers(),
               by_all = Quantized("int8_tensor", rows, cols, x, o).numbers();
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(std::isnan(by_row[i]), i >= cols) << i;
    EXPECT_EQ(std::isnan(by_block[i]), i / 64 == 3 || i / 64 == 4) << i;
    EXPECT_TRUE(std::isnan(by_all[i])) << i;
  }
  const Floats tiny(static_cast<size_t>(cols), 1e-40f);
  for (float v : Quantized("int8_row", 1, cols, tiny, o).numbers()) EXPECT_LE(std::abs(v), 3e-40f);
}

TEST(Quantize, RowsWithOneScaleMayHaveAnyWidthThatFillsBytes) {
  for (const auto& [format, cols] : {std::pair<std::string_view, int64_t>{"int4_row", 18},
                                     {"int4_tensor", 1042},
                                     {"int8_row", 1},
                                     {"int8_row", 1041},
                                     {"int8_tensor", 17}})
    for (bool transpose : {false, true}) {
      SCOPED_TRACE(fmt::format("{} {}", format, cols));
      const int64_t rows = 3;
      const Floats x = normal(rows * cols, 22);
      const Options o{.transpose = transpose};
      const Quantized q(format, rows, cols, transpose ? transposed(x, rows, cols) : x, o);
      const Floats y = q.numbers();
      float largest[3] = {};
      const auto row_of = [&](size_t i) {
        return format.ends_with("row") ? i / static_cast<size_t>(cols) : size_t{0};
      };
      for (size_t i = 0; i < x.size(); ++i) largest[row_of(i)] = std::max(largest[row_of(i)], std::abs(x[i]));
      const float steps = format.starts_with("int4") ? 7 : 127;
      for (size_t i = 0; i < x.size(); ++i)
        EXPECT_LE(std::abs(x[i] - y[i]), largest[row_of(i)] / steps * 0.5001f) << i;
    }
}

TEST(Quantize, RowRangesOfAPackedMatrixArePackedMatrices) {
  for (const std::string_view format : {"mxfp4", "nvfp4", "int8_row", "int4_tensor"}) {
    const Quantized q(format, 6, 64, uneven(6, 64, 20));
    const Packed part = q.packed().row_range(2, 5);
    const DeviceCopy<float> y(Floats(3 * 64, 0.0f));
    kernels::dequantize(test_queue(), {.y = y.tensor({3, 64}), .x = part});
    const Floats whole = q.numbers();
    EXPECT_EQ(y.values(), Floats(whole.begin() + 2 * 64, whole.begin() + 5 * 64)) << format;
  }
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

TEST(BlockFormat, EveryFormatHasANameAndComesBackByIt) {
  EXPECT_EQ(block_formats().size(), 19u);
  for (const NamedFormat& f : block_formats()) {
    EXPECT_EQ(block_format(f.name), f.format);
    EXPECT_EQ(name(f.format), f.name);
    EXPECT_FALSE(f.about.empty());
  }
  EXPECT_EQ(packed_bytes(block_format("mxfp4"), 4096, 4096), 4096 * 4096 / 2 + 4096 * 128);
  EXPECT_EQ(packed_bytes(block_format("nvfp4"), 1, 64), 64 + 64 + 64);
  EXPECT_EQ(packed_bytes(block_format("int8_tensor"), 3, 10), 64 + 64);
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
