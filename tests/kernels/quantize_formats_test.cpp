// What quantize() makes of every format: codes and scales, against the oracle and the golden vectors.

#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <sstream>

#include "tests/oracle/quantize.h"
#include "tests/support/paths.h"
#include "tests/support/quantized.h"

using namespace osprey;
using namespace osprey::test;
using Kind = kernels::Rounding::Kind;

namespace {

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

}  // namespace

TEST(Quantize, EveryFormatIsWhatTheOracleFindsElementByElement) {
  const int64_t rows = 5, cols = 384;
  const Floats x = uneven(rows, cols, 1);
  for (const NamedFormat& named : block_formats())
    for (ScaleRule rule : {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil}) {
      SCOPED_TRACE(fmt::format("{} rule {}", named.name, static_cast<int>(rule)));
      const BlockFormat& f = named.format;
      if (!allows(f.scale, f.element, rule)) continue;
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
            const auto value = [](uint32_t code) {
              return static_cast<float>(oracle::code_values(Element::e4m3)[code]);
            };
            want_scale = oracle::nearest_code(Element::e4m3, a * (up * (1 / top)));
            if (rule == ScaleRule::rceil)
              for (want_scale = 1; want_scale < 0x7e && a * (1 / (value(want_scale) * tensor)) > top;)
                ++want_scale;
            scale = value(want_scale);
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
        if (!transpose && dtype == DType::f32) {
          EXPECT_EQ(q.measured(o)[3], clipped);
        }
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
