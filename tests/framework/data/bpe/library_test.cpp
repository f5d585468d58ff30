// Random hard text, token for token against the tokenizers library: where OSPREY_PYTHON names a Python that
// has it.

#include <cstdlib>

#include "tests/framework/data/bpe/any_text.h"
#include "tests/framework/data/bpe/golden.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

TEST(BpeLibrary, EncodesRandomTextAsTheTokenizersLibraryDoes) {
  const char* python = std::getenv("OSPREY_PYTHON");
  if (!python) GTEST_SKIP() << "OSPREY_PYTHON names no Python with the tokenizers library";
  const char* seed = std::getenv("OSPREY_SEED");
  test::TempDir dir;
  std::vector<std::string> texts;
  for (uint64_t i = 0; i < 2000; ++i) {
    test::FuzzDraws draws((seed ? std::strtoull(seed, nullptr, 10) : 0) * 100'000 + i);
    texts.push_back(test::any_text(draws));
  }
  spill((dir / "texts.json").string(), nlohmann::json(texts).dump());
  for (const auto& family : test::kFamilies) {
    const std::string where = (dir / family).string(), out = where + "/ids.json";
    const auto tokenizer = test::golden_tokenizer(where, family);
    const std::string command = std::string(python) + " " + test::source_dir() +
                                "/tests/framework/data/bpe/encode_with_library.py " + where +
                                "/tokenizer.json " + (dir / "texts.json").string() + " > " + out;
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    const auto expected = nlohmann::json::parse(slurp(out));
    for (size_t i = 0; i < texts.size(); ++i) {
      EXPECT_EQ(tokenizer->encode(texts[i]), expected[0][i].get<std::vector<int32_t>>())
          << family << ": " << texts[i];
      std::vector<int32_t> special;
      tokenizer->encode_with_specials(texts[i], special);
      EXPECT_EQ(special, expected[1][i].get<std::vector<int32_t>>()) << family << ": " << texts[i];
    }
  }
}

}  // namespace
}  // namespace osprey
