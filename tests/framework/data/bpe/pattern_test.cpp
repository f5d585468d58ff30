#include "framework/data/bpe/pattern.h"

#include "tests/framework/data/data_support.h"

#include <gtest/gtest.h>

namespace osprey::bpe {
namespace {

/// Matches and what is between them, with | between.
std::string pieces(const std::string& pattern, const std::string& text) {
  const Pattern compiled(pattern, "here");
  MatchSpace space;
  std::string out;
  size_t done = 0;
  while (const auto match = compiled.find(text, done, space)) {
    if (match->begin > done) out += text.substr(done, match->begin - done) + "|";
    out += text.substr(match->begin, match->end - match->begin) + "|";
    done = match->end;
  }
  return out + text.substr(done);
}

TEST(BpePattern, MatchesAsOnigurumaDoes) {
  EXPECT_EQ(pieces(R"(\s+(?!\S)|\s+)", "a   b \n"), "a|  | |b| \n|");
  EXPECT_EQ(pieces(R"(\s+)", "a\u0085b\u180ec\u3000d"), "a|\u0085|b\u180ec|\u3000|d");  // U+180E is no space
  EXPECT_EQ(pieces(R"([^\s]+)", "b\u180ec d"), "b\u180ec| |d|");
  EXPECT_EQ(pieces(R"((?i:'s|'t))", "it'S'\u017f't"), "it|'S|'\u017f|'t|");
  EXPECT_EQ(pieces(R"(\p{N}{1,3})", "1234567"), "123|456|7|");
  EXPECT_EQ(pieces(R"(x*)", "axxb"), "a|xx|b");  // nothing is no match
}

TEST(BpePattern, RefusesWhatTheLibrariesReadDifferently) {
  for (const char* pattern : {"^a",
                              "a$",
                              "a.b",
                              R"(\w+)",
                              R"(\bword)",
                              "[[:alpha:]]",
                              "[a&&b]",
                              "[a[b]]",
                              R"(\p{N}{1,3}+)",
                              R"(\p{N}{2}?)",
                              "a{,3}",
                              "(?<n>a)",
                              "(?>a)",
                              "(?<=a)b",
                              "(*FAIL)",
                              R"(\1)",
                              R"((?i:\p{Lu}))",
                              "[]a]",
                              R"(\p{White_Space})",
                              R"(\pL)",
                              "a{",
                              "[a",
                              "\\"})
    EXPECT_TRUE(contains(error_of([&] { Pattern(pattern, "here"); }), "is not understood")) << pattern;
  for (const char* pattern : {"(a", "*a", "[b-a]", R"(\p{Zz})"})
    EXPECT_TRUE(contains(error_of([&] { Pattern(pattern, "here"); }), "is wrong")) << pattern;
}

TEST(BpePattern, EndsWhereAPatternBacktracksWithoutEnd) {
  const Pattern pattern("(?:a+)+[bd]", "here");
  MatchSpace space;
  const std::string text(5000, 'a');
  EXPECT_TRUE(contains(error_of([&] { pattern.find(text + "c", 0, space); }), "takes too long"));
}

TEST(BpePattern, PublishedPatternsAreLinearInRunsOfSpace) {
  const Pattern pattern(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", "here");
  MatchSpace space;
  const std::string text(1 << 21, ' ');
  const auto match = pattern.find(text + "x", 0, space);
  ASSERT_TRUE(match);
  EXPECT_EQ(match->end, text.size() - 1);
}

}  // namespace
}  // namespace osprey::bpe
