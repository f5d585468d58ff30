// What quantize() makes of blocks with small scales, 16 rows at a time or row by row, against its rules
// element by element.

#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include "tests/support/quantized.h"

using namespace osprey;
using namespace osprey::test;
using Kind = kernels::Rounding::Kind;

namespace {

/// The numbers that are rounded: of dense x that is not transposed.
Floats rotated_and_scaled(Floats v, const Options& o) {
  const auto size = static_cast<size_t>(o.rotation.size);
  const Philox signs = rotation_signs(o.rotation.seed, o.rotation.stream);
  for (size_t at = 0; size > 0 && at < v.size(); at += size) {
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
  return v;
}

BlockScale power_scale(Element e, ScaleRule rule, uint32_t largest, const float* v) {
  int64_t sum = 0, squares = 0;
  for (size_t i = 0; largest < float_infinity && i < 32; ++i) {
    const int64_t k = in_units(v[i], unit_exponent(largest));
    sum += k;
    squares += k * k;
  }
  return block_scale_e8m0(rule == ScaleRule::mse ? e8m0_of_deviation(largest, 32, sum, squares)
                                                 : e8m0_of_largest(e, rule, largest),
                          largest);
}

/// Of 16 numbers; rule four_over_six takes the smaller sum of squared errors.
BlockScale small_scale(Element e, ScaleRule rule, uint32_t largest, TensorScale tensor, const float* v) {
  if (rule == ScaleRule::rceil) return block_scale_e4m3_up(e, largest, tensor);
  const BlockScale six = block_scale_e4m3(e, largest, tensor, 1.0f);
  if (rule != ScaleRule::four_over_six || largest >= float_infinity) return six;
  const BlockScale four = block_scale_e4m3(e, largest, tensor, 1.5f);
  const auto squares = [&](const BlockScale& s) {
    int64_t sum = 0;
    for (size_t i = 0; i < 16; ++i) {
      const int64_t off = error_in_units(e, v[i], s, tensor.down, unit_exponent(largest));
      sum += off * off;
    }
    return sum;
  };
  return squares(four) < squares(six) ? four : six;
}

/// What quantize() does, one element after the other.
Result by_the_rules(std::string_view format, const Floats& x, const Options& o) {
  const BlockFormat& f = block_format(format);
  const Element e = f.element;
  const auto bits = static_cast<size_t>(f.bits()), block = static_cast<size_t>(f.block);
  const size_t n = x.size();
  const Floats v = rotated_and_scaled(x, o);
  Result want{std::vector<uint8_t>(n * bits / 8), std::vector<uint32_t>(n / block), -1,
              std::vector<uint8_t>(n / 8)};
  TensorScale tensor{1, 1};
  if (f.scale == ScaleType::e4m3) {
    uint32_t largest = 0;
    for (float u : v)
      if (std::isfinite(u)) largest = std::max(largest, magnitude_bits(u));
    tensor = tensor_scale_of(e, o.rule, largest);
    want.tensor_scale = tensor.down;
  }
  for (size_t b = 0; b < n / block; ++b) {
    const float* in = v.data() + block * b;
    uint32_t largest = 0;
    for (size_t i = 0; i < block; ++i) largest = std::max(largest, magnitude_bits(in[i]));
    const BlockScale s = f.scale == ScaleType::e8m0 ? power_scale(e, o.rule, largest, in)
                                                    : small_scale(e, o.rule, largest, tensor, in);
    want.scales[b] = s.stored;
    for (size_t i = block * b; i < block * (b + 1); ++i) {
      const float u = v[i] * s.inverse;
      const uint32_t draw =
          draw_of(draw_group(o.rounding.seed, o.rounding.stream, i / 16), static_cast<int>(i % 16));
      const uint32_t code = !(s.inverse > 0)                      ? 0
                            : o.rounding.kind == Kind::stochastic ? encode_stochastic(e, u, draw)
                                                                  : encode_nearest(e, u);
      for (size_t bit = 0; bit < bits; ++bit)
        want.codes[(i * bits + bit) / 8] |= static_cast<uint8_t>((code >> bit & 1) << (i * bits + bit) % 8);
      want.mask[i / 8] |= static_cast<uint8_t>((std::abs(u) <= element_layout(e).largest) << (i % 8));
    }
  }
  return want;
}

/// Numbers of every size there is with many zeros and denormals, blocks of zeros, and of nearly equal
/// numbers.
Floats all_sizes(int64_t rows, int64_t cols) {
  Floats x = normal(rows * cols, 21);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t b = i / 32;
    const int own = i % 5 == 1 ? -static_cast<int>(i / 5 % 40) : 0;  // far below the block's largest
    x[i] =
        b % 17 == 3 ? (i % 2 ? 0.0f : -0.0f) : std::ldexp(x[i], static_cast<int>(b * 37 % 273) - 149 + own);
    if (b % 11 == 7)
      x[i] = std::ldexp(static_cast<float>(static_cast<int>(philox(5, 6, i).v[0] % 49) - 24), -2);
    if (b % 13 == 9)  // of one size and sign: rule mse goes by the mean square there
      x[i] = std::ldexp(1.0f + static_cast<float>(i % 3) / 64, static_cast<int>(b * 37 % 250) - 125);
    if (!std::isfinite(x[i])) x[i] = 3e38f;
  }
  return x;
}

/// Blocks of 16 within 2^10 of each other below 2^top, half of them on a grid where roundings tie; with
/// zeros, and elements far below their block.
Floats near_sizes(int64_t rows, int64_t cols, int top) {
  Floats x = normal(rows * cols, 22);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t b = i / 16;
    if (b % 2) x[i] = static_cast<float>(static_cast<int>(philox(7, 8, i).v[0] % 97) - 48) / 8;
    x[i] = std::ldexp(x[i] / 8, top - static_cast<int>(b * 7 % 11) - (i % 9 == 4 ? 30 : 0));
    if (b % 19 == 5 || i % 23 == 7) x[i] = 0;
  }
  return x;
}

// A GPU has one way for all rows and formats, and the one that is played on the CPU takes its time.
bool has_many_ways() { return test_device().kind == DeviceKind::cpu; }
// Whole groups of 16 rows and some left over.
int64_t some_rows() { return has_many_ways() ? 16 * 3 + 5 : 5; }

/// x from every kind of dense source, by every rule and rotation, against by_the_rules().
void expect_the_rules(std::string_view format, Floats x, int64_t rows, int64_t cols) {
  for (float& f : x) f = to_float(osprey::to_bf16(f));
  for (ScaleRule rule : {ScaleRule::floor, ScaleRule::even, ScaleRule::ceil, ScaleRule::rceil, ScaleRule::mse,
                         ScaleRule::four_over_six})
    for (Kind kind : {Kind::nearest_even, Kind::stochastic})
      for (int rotation : {0, 16, 32, 64, 128}) {
        if (!allows(block_format(format).scale, block_format(format).element, rule)) continue;
        if (!has_many_ways() && (rotation % 64 == 16 || rotation == 64 || rule == ScaleRule::floor)) continue;
        SCOPED_TRACE(fmt::format("{} rule {} stochastic {} rotation {}", format, static_cast<int>(rule),
                                 kind == Kind::stochastic, rotation));
        Options o{.rule = rule,
                  .rounding = {kind, 0x123456789ull, 0xabcdef0123ull},
                  .rotation = rotation_of(rotation)};
        const Result want = by_the_rules(format, x, o);
        for (DType dtype : {DType::f32, DType::bf16})
          for (bool transpose : {false, true}) {
            o.dtype = dtype;
            o.transpose = transpose;
            const Result got =
                Quantized(format, rows, cols, transpose ? transposed(x, rows, cols) : x, o).result();
            EXPECT_EQ(got, want) << name(dtype) << (transpose ? " transposed" : "");
          }
      }
}

bool has_small_scales(const BlockFormat& f) {
  return f.scale == ScaleType::e8m0 || f.scale == ScaleType::e4m3;
}

}  // namespace

TEST(Quantize, EveryWayToBlocksIsTheRulesElementByElement) {
  const int64_t rows = some_rows(), cols = 384;
  Floats x = all_sizes(rows, cols);
  for (float& f : x) f = std::abs(f) > 3e38f ? 3e38f : f;  // what bf16 does not make infinite
  x[3 * static_cast<size_t>(cols) + 40] = NAN;
  x[x.size() - 200] = -INFINITY;
  for (const NamedFormat& f : block_formats())
    if (has_small_scales(f.format)) expect_the_rules(f.name, x, rows, cols);
}

TEST(Quantize, ScalesWithinAMatrixScaleAreTheRulesFromDenormalsToTheLargestNumbers) {
  const int64_t rows = some_rows(), cols = 384;
  for (int top :
       has_many_ways() ? std::vector{-140, -126, -115, -100, 0, 100, 127} : std::vector{-126, 0, 127})
    for (const std::string_view format : {"nvfp4", "nvint4"}) {
      SCOPED_TRACE(top);
      Floats x = near_sizes(rows, cols, top);
      x[static_cast<size_t>(cols) + 7] = NAN;
      expect_the_rules(format, x, rows, cols);
    }
}

TEST(Quantize, PackedFourBitFloatsByColumnsAreTakenForTheirNumbers) {
  // Groups of 128 columns of the source and some left over.
  const int64_t rows = 160, cols = 32 * 5 * 2;
  for (const std::string_view from : {"mxfp4", "nvfp4"})
    for (const std::string_view to : {"mxfp4", "nvfp4", "mxint8"})
      for (int rotation : {0, 16, 32}) {
        SCOPED_TRACE(fmt::format("{} to {} rotation {}", from, to, rotation));
        const Quantized source(from, rows, cols,
                               from == "mxfp4" ? all_sizes(rows, cols) : near_sizes(rows, cols, 3),
                               {.rule = from == "mxfp4" ? ScaleRule::rceil : ScaleRule::four_over_six});
        Options o{.rule = to == "mxint8" ? ScaleRule::even : ScaleRule::rceil,
                  .rounding = {Kind::stochastic, 7, 8},
                  .rotation = rotation_of(rotation),
                  .transpose = true};
        const Result got = Quantized(to, cols, rows, source.packed(), o).result();
        o.transpose = false;
        EXPECT_EQ(got, by_the_rules(to, transposed(source.numbers(), rows, cols), o));
      }
}
