#include "framework/data/bpe/normalizer.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/framework/data/data_support.h"

namespace osprey::bpe {
namespace {

std::string normalized(const char* json, const std::string& text) {
  const auto parsed = nlohmann::json::parse(json);
  std::string buffer;
  return std::string(Normalizer(JsonNode(parsed, "here"))(text, buffer));
}

TEST(BpeNormalizer, FormCIsUnicodes) {
  EXPECT_EQ(to_nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(to_nfc("a\u0302\u0323"), "\u1ead");                   // marks are sorted before they compose
  EXPECT_EQ(to_nfc("\u212b\u2126"), "\u00c5\u03a9");              // singletons
  EXPECT_EQ(to_nfc("\u0958\u2adc"), "\u0915\u093c\u2add\u0338");  // excluded from composition
  EXPECT_EQ(to_nfc("\u1106\u116e\u11af"), "\ubb3c");              // Hangul
  EXPECT_EQ(to_nfc("\ufb01 caf\u00e9"), "\ufb01 caf\u00e9");      // compatibility characters stay
}

TEST(BpeNormalizer, ManyMarksTakeLinearTime) {
  // Sorted by insertion, as utf8proc does, this takes minutes.
  std::string text = "a", sorted = "a";
  for (int i = 0; i < 200'000; ++i) text += "\u0f73";  // becomes two marks of different classes
  const auto start = std::chrono::steady_clock::now();
  const std::string found = to_nfc(text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_TRUE(found.starts_with("a\u0f71\u0f71") && found.ends_with("\u0f72\u0f72"));
}

TEST(BpeNormalizer, StepsFollowOneAnother) {
  const char* llama2 = R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]})";
  EXPECT_EQ(normalized(llama2, "a b  c"), "_a_b__c");
  EXPECT_EQ(normalized(llama2, ""), "");
  EXPECT_EQ(normalized("null", "e\u0301"), "e\u0301");
  EXPECT_TRUE(contains(error_of([] { normalized(R"({"type": "Lowercase"})", "x"); }),
                       "`Lowercase`; Osprey knows NFC"));
  EXPECT_TRUE(contains(
      error_of([] { normalized(R"({"type": "Replace", "pattern": {"Regex": " "}, "content": "_"})", "x"); }),
      "pattern.String is not given"));
}

}  // namespace
}  // namespace osprey::bpe
