#include "framework/checkpoint/gguf.h"

#include <gtest/gtest.h>

#include "framework/files/file.h"
#include "kernels/core/random.h"
#include "kernels/numerics/half.h"
#include "tests/support/gguf_reader.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using test::GgufFile;
using test::refusal;
using test::TempDir;

std::string text(const std::vector<int>& bytes) { return std::string(bytes.begin(), bytes.end()); }

TEST(Gguf, ASmallFileHasTheseBytes) {
  TempDir dir;
  GgufKeys keys;
  keys.add("a.b", 7u);
  keys.add("c", "xy");
  GgufWriter writer(dir / "f", keys, {{"t", {1, 2}, GgufType::f32}});
  const float values[] = {1, -2};
  std::string data;
  encode_gguf({}, GgufType::f32, make_tensor(const_cast<float*>(values), {1, 2}, DType::f32), "t", data);
  writer.write("t", data);
  writer.finish();
  const std::string expected =
      "GGUF" + text({3, 0, 0, 0}) + text({1, 0, 0, 0, 0, 0, 0, 0}) + text({2, 0, 0, 0, 0, 0, 0, 0}) +
      text({3, 0, 0, 0, 0, 0, 0, 0}) + "a.b" + text({4, 0, 0, 0, 7, 0, 0, 0}) +                   // u32
      text({1, 0, 0, 0, 0, 0, 0, 0}) + "c" + text({8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}) + "xy" +  // string
      text({1, 0, 0, 0, 0, 0, 0, 0}) + "t" + text({2, 0, 0, 0}) +  // two dimensions:
      text({2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}) +
      text({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});  // 2, then 1
  const std::string padded = expected + std::string((32 - expected.size() % 32) % 32, '\0') +
                             text({0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}) + std::string(24, '\0');
  EXPECT_EQ(read_file(dir / "f", 1000), padded);
}

TEST(Gguf, KeysOfEveryTypeAreRead) {
  TempDir dir;
  GgufKeys keys;
  keys.add("u", 4000000000u);
  keys.add("f", 1.5f);
  keys.add("yes", true);
  keys.add("no", false);
  keys.add("s", std::string_view("h\0i", 3));
  const std::vector<std::string> words = {"", "Ġa", "b"};
  const std::vector<float> scores = {-1, 2.5};
  const std::vector<int32_t> types = {-3, 4};
  keys.add("words", words);
  keys.add("scores", scores);
  keys.add("types", types);
  EXPECT_EQ(keys.count(), 8u);
  GgufWriter(dir / "f", keys, {}).finish();
  const GgufFile file(read_file(dir / "f", 10000));
  EXPECT_EQ(file.keys.at("u"), 4000000000u);
  EXPECT_EQ(file.keys.at("f"), 1.5);
  EXPECT_EQ(file.keys.at("yes"), true);
  EXPECT_EQ(file.keys.at("no"), false);
  EXPECT_EQ(file.keys.at("s").get<std::string>().size(), 3u);
  EXPECT_EQ(file.keys.at("words"), words);
  EXPECT_EQ(file.keys.at("scores"), scores);
  EXPECT_EQ(file.keys.at("types"), types);
}

TEST(Gguf, ValuesComeBackWithinTheRoundingOfTheirType) {
  TempDir dir;
  constexpr int64_t rows = 5, cols = 64;
  std::vector<float> x;
  for (uint64_t i = 0; i < rows * cols; ++i) x.push_back(3 * random_uniform(1, 2, i) - 1.5f);
  std::fill_n(x.begin(), 32, 0.0f);  // a block of zeros
  const std::vector<std::pair<GgufType, double>> types = {{GgufType::f32, 0},
                                                          {GgufType::f16, 1.5 / 2048},
                                                          {GgufType::bf16, 1.5 / 256},
                                                          {GgufType::q8_0, 1.5 / 254 + 1e-3},
                                                          {GgufType::mxfp4, 0.5}};
  std::vector<GgufTensor> tensors;
  for (const auto& [type, error] : types) tensors.push_back({name(type), {rows, cols}, type});
  GgufWriter writer(dir / "f", {}, tensors);
  for (const auto& [type, error] : types)
    for (int64_t r = 0; r < rows; r += 2) {  // in parts
      const int64_t n = std::min<int64_t>(2, rows - r);
      std::string data;
      encode_gguf({}, type, make_tensor(x.data() + r * cols, {n, cols}, DType::f32), name(type), data);
      EXPECT_EQ(static_cast<int64_t>(data.size()), gguf_bytes(type, {n, cols}, ""));
      writer.write(name(type), data);
    }
  writer.finish();
  const GgufFile file(read_file(dir / "f", 1 << 20));
  for (const auto& [type, error] : types) {
    EXPECT_EQ(file.tensors.at(name(type)).dims, (std::vector<uint64_t>{cols, rows}));
    EXPECT_EQ(file.tensors.at(name(type)).type, static_cast<uint32_t>(type));
    const std::vector<double> y = file.values(name(type));
    double worst = 0, sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      worst = std::max(worst, std::abs(y[i] - x[i]));
      sum += y[i] * x[i] / (static_cast<double>(x[i]) * x[i] + 1e-9);
    }
    EXPECT_LE(worst, error) << name(type);
    EXPECT_NEAR(sum / static_cast<double>(x.size() - 32), 1, 0.05) << name(type);
  }
}

TEST(Gguf, WhatDoesNotFitIsRefused) {
  TempDir dir;
  EXPECT_NE(refusal([] {
              gguf_bytes(GgufType::q8_0, {2, 33}, "w");
            }).find("multiple of 32"),
            std::string::npos);
  GgufKeys keys;
  keys.add("a", 1u);
  EXPECT_NE(refusal([&] { keys.add("a", 2u); }).find("given twice"), std::string::npos);
  EXPECT_NE(refusal([&] {
              GgufWriter(dir / "f", keys, {{"t", {1}}, {"t", {1}}});
            }).find("given twice"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              GgufWriter(dir / "g", keys, {{std::string(64, 'x'), {1}}});
            }).find("longer"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              GgufWriter(dir / "h", keys, {{"t", {1}}}).finish();
            }).find("0 of its 4"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              GgufWriter(dir / "i", keys, {{"t", {1}}}).write("u", "abcd");
            }).find("'t' has 0"),
            std::string::npos);
  float big = 7e4f;
  std::string data;
  EXPECT_NE(refusal([&] {
              encode_gguf({}, GgufType::f16, make_tensor(&big, {1}, DType::f32), "w", data);
            }).find("70000"),
            std::string::npos);
}

TEST(Half, EveryNumberComesBackAndTheRestRoundsToTheNearestEven) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float x = half_to_float(half);
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(x))));
      continue;
    }
    ASSERT_EQ(float_to_half(x), half) << h;
    if ((h & 0x7fff) >= 0x7bff) continue;  // the largest, and infinity
    // Halfway to the next one in magnitude: to the even of both, and a little less or more to the nearer.
    const float next = half_to_float(static_cast<uint16_t>(h + 1)), middle = x + (next - x) / 2;
    ASSERT_EQ(float_to_half(middle), h % 2 == 0 ? h : h + 1) << h;
    ASSERT_EQ(float_to_half(std::nextafter(middle, x)), h) << h;
    ASSERT_EQ(float_to_half(std::nextafter(middle, next)), h + 1) << h;
  }
  EXPECT_EQ(float_to_half(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
}

}  // namespace
}  // namespace osprey
