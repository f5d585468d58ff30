// tokenizer.json comes from strangers: whatever it says, loading and encoding end, with an Error at worst.

#include "tests/support/fuzz.h"
#include "tests/framework/data/bpe/any_text.h"
#include "tests/framework/data/bpe/golden.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

const char* const kConfig = "{\"eos_token\": \"</s>\"}";

/// A file of each kind, small enough that mutations reach everything in it.
std::vector<std::string> small_files() {
  std::vector<std::string> files;
  for (const auto& family : test::kFamilies) {
    auto json = nlohmann::json::parse(test::golden_json(family));
    auto& model = json["model"];
    model["vocab"] = {{"a", 0},     {"b", 1},      {"ab", 2},    {"\u0120", 3},
                      {"<unk>", 4}, {"\u2581", 5}, {"<0x0A>", 6}};
    model["merges"] = nlohmann::json::array({nlohmann::json::array({"a", "b"})});
    json["added_tokens"] = {{{"id", 7}, {"content", "</s>"}, {"special", true}}};
    json["post_processor"] = nullptr;
    files.push_back(json.dump());
  }
  return files;
}

TEST(BpeFuzz, HostileFilesAreRefusedOrRead) {
  test::TempDir dir;
  const std::string where = dir.path().string();
  const std::vector<std::string> words = {"null",
                                          "-1",
                                          "16777215",
                                          "99999999999",
                                          "1e9",
                                          "{}",
                                          "[]",
                                          "\"\"",
                                          "\"a\"",
                                          "\"a b\"",
                                          "\"type\"",
                                          "\"id\"",
                                          "\"Sequence\"",
                                          "\"ByteLevel\"",
                                          "\"Metaspace\"",
                                          "\"Regex\"",
                                          "(\\\\p{L}+)+",
                                          "[^",
                                          "\\\\s",
                                          "(?!",
                                          "{1,999}",
                                          "\"vocab\"",
                                          "\"merges\"",
                                          "\"added_tokens\"",
                                          "true",
                                          "false",
                                          "[[[[",
                                          "\u2581"};
  const auto seeds = small_files();
  for (const auto& seed : seeds) {
    test::spill_tokenizer(where, seed, kConfig);
    ASSERT_EQ(error_of([&] { load_tokenizer(where); }), "no error");
  }
  const auto count = test::fuzz(seeds, words, [&](const std::string& text) {
    test::spill_tokenizer(where, text, kConfig);
    const auto tokenizer = load_tokenizer(where);
    std::vector<int32_t> tokens;
    tokenizer->encode_with_specials("ab ba\n</s>ab  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", tokens);
    tokenizer->decode(tokens);
  });
  EXPECT_GT(count.refused, 0);
  EXPECT_GT(count.accepted, 0);
}

TEST(BpeFuzz, AnyTextComesBackFromItsTokens) {
  test::TempDir dir;
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  for (const char* family : {"gpt2", "llama3", "smollm", "llama2"})
    tokenizers.push_back(test::golden_tokenizer((dir / family).string(), family));
  const auto end = test::fuzz_end();
  for (uint64_t number = 0; std::chrono::steady_clock::now() < end; ++number) {
    test::FuzzDraws draws(number);
    const std::string text = test::any_text(draws);
    for (const auto& tokenizer : tokenizers) {
      if (tokenizer == tokenizers.back() && contains(text, "\u2581")) continue;  // stands for a space there
      ASSERT_EQ(tokenizer->decode(tokenizer->encode(text)), text) << "case " << number;
    }
  }
}

}  // namespace
}  // namespace osprey
