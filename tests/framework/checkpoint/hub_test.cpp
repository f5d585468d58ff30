#include "framework/checkpoint/hub.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "kernels/core/random.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

TEST(Hub, FormulasAreCarriedOutInFp32AndRoundedOnce) {
  test::TempDir dir;
  // More rows than one block holds.
  const int64_t V = 40'000, C = 40;
  std::map<std::string, std::vector<float>> parameters;
  for (const auto& [name, n] : {std::pair{"e", V * C}, {"p", C * C}, {"s", int64_t{1}}}) {
    auto& values = parameters[name];
    for (int64_t i = 0; i < n; ++i)
      values.push_back(to_float(to_bf16(random_normal(1, stream_of(name), static_cast<uint64_t>(i)))));
  }
  const ReadParameter read = [&](const std::string& name, int64_t begin, Tensor out) {
    std::memcpy(out.data, parameters.at(name).data() + begin, static_cast<size_t>(out.bytes()));
  };
  using Rule = HubTensor::Rule;
  const HubLayout layout = {"",
                            "",
                            {{"nt", {V, C}, Rule::times_transposed, "e", "p", {C, C}},
                             {"nn", {V, C}, Rule::times, "e", "p", {C, C}},
                             {"copy", {V, C}, Rule::copy, "e", "", {}},
                             {"wide", {C}, Rule::broadcast, "s", "", {}}}};
  for (const StoredType type : {StoredType::bf16, StoredType::f32}) {
    const auto path = dir / name(type);
    write_hub_tensors(Queue{}, path, layout, read, type);
    const SafetensorsFile file(path);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    const auto value = [&](const char* tensor, int64_t at) {
      float v = 0;
      file.read(*file.find(tensor), at, make_tensor(&v, {1}, DType::f32));
      return v;
    };
    const auto &e = parameters["e"], &p = parameters["p"];
    for (uint64_t i = 0; i < 2000; ++i) {
      const auto row = static_cast<int64_t>(random_u64(2, 0, i) % static_cast<uint64_t>(V));
      const auto col = static_cast<int64_t>(random_u64(2, 1, i) % static_cast<uint64_t>(C));
      double nt = 0, nn = 0, magnitude = 0;
      for (int64_t k = 0; k < C; ++k) {
        const double a = e[static_cast<size_t>(row * C + k)];
        nt += a * p[static_cast<size_t>(col * C + k)];
        nn += a * p[static_cast<size_t>(k * C + col)];
        magnitude += std::abs(a);
      }
      // One rounding: half an ulp of the stored type, and the noise of an fp32 sum.
      const double ulp = type == StoredType::bf16 ? 0x1p-8 : 0x1p-24;
      ASSERT_NEAR(value("nt", row * C + col), nt, std::abs(nt) * ulp + magnitude * 2e-6);
      ASSERT_NEAR(value("nn", row * C + col), nn, std::abs(nn) * ulp + magnitude * 2e-6);
      EXPECT_EQ(value("copy", row * C + col), e[static_cast<size_t>(row * C + col)]);
    }
    EXPECT_EQ(value("wide", C - 1), parameters["s"][0]);
  }
}

TEST(Hub, TextsAndTokenizerFilesComeAlong) {
  test::TempDir dir;
  std::filesystem::create_directory(dir / "tok");
  std::filesystem::create_directory(dir / "out");
  write_file(dir / "tok" / "tokenizer.model", "t");
  write_file(dir / "tok" / "chat_template.jinja", "j");
  write_file(dir / "tok" / "private.txt", "x");
  const auto records = write_hub_texts(dir / "out", {"{1}", "{2}", {}}, dir / "tok");
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(read_file(dir / "out" / "chat_template.jinja", 10), "j");
  EXPECT_EQ(read_file(dir / "out" / "config.json", 10), "{1}");
  EXPECT_EQ(read_file(dir / "out" / "tokenizer.model", 10), "t");
  EXPECT_FALSE(std::filesystem::exists(dir / "out" / "private.txt"));
}

}  // namespace
}  // namespace osprey
