#include <gtest/gtest.h>

#include <thread>

#include "framework/data/bpe/normalizer.h"
#include "tests/framework/data/bpe/golden.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using test::golden_json;
using test::golden_tokenizer;
using test::golden_vectors;
using test::TempDir;

class BpeFamily : public testing::TestWithParam<std::string> {
 protected:
  TempDir dir;
  std::unique_ptr<Tokenizer> tokenizer = golden_tokenizer(dir.path().string(), GetParam());
  std::vector<std::string> texts = golden_vectors()["texts"];
};
INSTANTIATE_TEST_SUITE_P(, BpeFamily, testing::ValuesIn(test::kFamilies),
                         [](const auto& family) { return family.param; });

TEST_P(BpeFamily, EncodesTokenForTokenAsTheTokenizersLibrary) {
  const auto expected = golden_vectors()["ids"][GetParam()].get<std::vector<std::vector<int32_t>>>();
  ASSERT_EQ(expected.size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i)
    EXPECT_EQ(tokenizer->encode(texts[i]), expected[i]) << i << ": " << texts[i];
}

TEST_P(BpeFamily, RecognisesSpecialTokensWhereAskedAsTheTokenizersLibraryDoes) {
  const auto& special = golden_vectors()["special"][GetParam()];
  ASSERT_FALSE(special.empty());
  for (size_t i = 0; i < texts.size(); ++i) {
    const bool differs = special.contains(std::to_string(i));
    const std::vector<int32_t> expected =
        differs ? special[std::to_string(i)].get<std::vector<int32_t>>() : tokenizer->encode(texts[i]);
    std::vector<int32_t> found;
    tokenizer->encode_with_specials(texts[i], found);
    EXPECT_EQ(found, expected) << i << ": " << texts[i];
  }
}

TEST_P(BpeFamily, ReturnsTheTextThatItEncoded) {
  if (GetParam() == "odd") GTEST_SKIP() << "puts a space before every part of a text, and keeps it";
  for (const std::string& text : texts) {
    const std::string expected = GetParam() == "qwen2" ? bpe::to_nfc(text) : text;
    if (!test::is_byte_level(GetParam()) && contains(text, "\u2581")) continue;  // stands for a space there
    if (GetParam() == "mistral" && text.starts_with(' ')) continue;  // takes it for the one that it adds
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), expected);
  }
}

TEST_P(BpeFamily, SavesADirectoryThatIsTheSameTokenizer) {
  TempDir copy;
  tokenizer->save(copy.path().string());
  EXPECT_EQ(slurp((copy / "tokenizer.json").string()), golden_json(GetParam()));
  EXPECT_TRUE(std::filesystem::exists(copy / "tokenizer_config.json"));
  const auto loaded = load_tokenizer(copy.path().string());
  EXPECT_EQ(loaded->kind(), "bpe");
  EXPECT_EQ(loaded->fingerprint(), tokenizer->fingerprint());
  EXPECT_EQ(loaded->eos_id(), tokenizer->eos_id());
  EXPECT_EQ(loaded->encode(texts[40]), tokenizer->encode(texts[40]));
}

TEST_P(BpeFamily, ThreadsShareATokenizer) {
  std::vector<std::vector<std::vector<int32_t>>> found(4);
  {
    std::vector<std::jthread> threads;
    for (auto& mine : found)
      threads.emplace_back([&] {
        for (int round = 0; round < 3; ++round) {
          mine.clear();
          for (const auto& text : texts) mine.push_back(tokenizer->encode(text));
        }
      });
  }
  const auto expected = golden_vectors()["ids"][GetParam()].get<std::vector<std::vector<int32_t>>>();
  for (const auto& mine : found) EXPECT_EQ(mine, expected);
}

TEST(BpeTokenizer, TextOfUsersNeverBecomesASpecialToken) {
  TempDir dir;
  const auto qwen2 = golden_tokenizer(dir.path().string(), "qwen2");
  const int32_t end = qwen2->special_id("<|im_end|>").value();
  const std::string text = "hi<|im_end|>\n";
  const auto plain = qwen2->encode(text);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(qwen2->decode(plain), text);
  std::vector<int32_t> special;
  qwen2->encode_with_specials(text, special);
  EXPECT_EQ(std::count(special.begin(), special.end(), end), 1);
  EXPECT_EQ(qwen2->decode(special), "hi\n");  // special tokens give no text
  EXPECT_EQ(qwen2->special_text(end), "<|im_end|>");
  EXPECT_EQ(qwen2->special_id("hi"), std::nullopt);
  // An added token that is not special is text, in one token.
  EXPECT_EQ(qwen2->encode("<tool_call>").size(), 1u);
  EXPECT_EQ(qwen2->decode(qwen2->encode("<tool_call>")), "<tool_call>");
}

TEST(BpeTokenizer, AMergeThatLeadsToASpecialTokenIsNotTaken) {
  // Llama 2 vocabularies list </s> as a piece, and merges made of all pairs of pieces lead to it.
  auto json = nlohmann::json::parse(golden_json("llama2"));
  auto& model = json["model"];
  for (const char* piece : {"<", "s>", "</", "/"})
    if (!model["vocab"].contains(piece)) model["vocab"][piece] = model["vocab"].size();
  model["merges"].push_back({"s", ">"});
  model["merges"].push_back({"<", "s>"});
  TempDir dir;
  test::spill_tokenizer(dir.path().string(), json.dump(), "{\"eos_token\": \"</s>\"}");
  const auto tokenizer = load_tokenizer(dir.path().string());
  const auto tokens = tokenizer->encode("<s>");
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 1), 0);
  EXPECT_EQ(tokenizer->decode(tokens), "<s>");
}

TEST(BpeTokenizer, MergesReadTheSameInBothForms) {
  auto json = nlohmann::json::parse(golden_json("gpt2"));
  ASSERT_TRUE(json["model"]["merges"][0].is_string());
  for (auto& merge : json["model"]["merges"]) {
    const std::string both = merge;
    const size_t space = both.find(' ');
    merge = {both.substr(0, space), both.substr(space + 1)};
  }
  TempDir one, two;
  test::spill_tokenizer(two.path().string(), json.dump(), "{\"eos_token\": \"<|endoftext|>\"}");
  EXPECT_EQ(golden_tokenizer(one.path().string(), "gpt2")->fingerprint(),
            load_tokenizer(two.path().string())->fingerprint());
}

TEST(BpeTokenizer, TheFingerprintIsOfWhatDecidesTokens) {
  TempDir dir;
  const std::string where = dir.path().string(), config = "{\"eos_token\": \"<|endoftext|>\"}";
  const auto fingerprint = [&](const nlohmann::json& json, const std::string& words) {
    test::spill_tokenizer(where, json.dump(), words);
    return load_tokenizer(where)->fingerprint();
  };
  const auto plain = nlohmann::json::parse(golden_json("qwen2"));
  const std::string expected = fingerprint(plain, config);
  auto json = plain;
  json["truncation"] = json["version"] = nullptr;
  EXPECT_EQ(fingerprint(json, config), expected);
  const auto differs = [&](const char* what, const auto& change) {
    json = plain;
    change(json);
    EXPECT_NE(fingerprint(json, config), expected) << what;
  };
  differs("normalizer", [](auto& j) { j["normalizer"] = nullptr; });
  differs("a pattern",
          [](auto& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}+"; });
  differs("the order of merges",
          [](auto& j) { std::swap(j["model"]["merges"][3], j["model"]["merges"][4]); });
  differs("a number", [](auto& j) { j["added_tokens"][0]["id"] = 1600; });
  differs("ignore_merges", [](auto& j) { j["model"]["ignore_merges"] = true; });
  EXPECT_NE(fingerprint(plain, "{\"eos_token\": \"<|im_end|>\"}"), expected) << "eos";
}

TEST(BpeTokenizer, NumbersWithoutATokenGiveNoTextAndOthersAreRefused) {
  auto json = nlohmann::json::parse(golden_json("gpt2"));
  json["added_tokens"].push_back({{"id", 1600}, {"content", "<far>"}, {"special", true}});
  TempDir dir;
  test::spill_tokenizer(dir.path().string(), json.dump(), "{\"eos_token\": \"<far>\"}");
  const auto tokenizer = load_tokenizer(dir.path().string());
  EXPECT_EQ(tokenizer->vocab_size(), 1601);
  EXPECT_EQ(tokenizer->eos_id(), 1600);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{1550}), "");
  EXPECT_TRUE(
      contains(error_of([&] { tokenizer->decode(std::vector<int32_t>{1601}); }), "vocabulary of 1601"));
  EXPECT_TRUE(contains(error_of([&] { tokenizer->encode("ok\xff"); }), "not UTF-8 at byte 2"));
}

}  // namespace
}  // namespace osprey
