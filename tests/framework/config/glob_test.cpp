#include "framework/config/glob.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>

#include "kernels/core/check.h"
#include "kernels/core/random.h"

namespace osprey {
namespace {

bool match(const char* pattern, const char* name) { return Glob(pattern).matches(name); }

TEST(Glob, MatchesNamesAsRecipesExpect) {
  EXPECT_TRUE(match("*", "norm.weight"));
  EXPECT_TRUE(match("*", ""));
  EXPECT_TRUE(match("*.{attn,mlp}.*.weight", "layers.3.attn.q.weight"));
  EXPECT_TRUE(match("*.{attn,mlp}.*.weight", "layers.3.mlp.down.weight"));
  EXPECT_FALSE(match("*.{attn,mlp}.*.weight", "layers.3.norm1.weight"));
  EXPECT_FALSE(match("*.{attn,mlp}.*.weight", "layers.3.attn.gate.bias"));
  EXPECT_TRUE(match("layers.?.norm?.weight", "layers.3.norm1.weight"));
  EXPECT_FALSE(match("layers.?.norm?.weight", "layers.13.norm1.weight"));
  EXPECT_TRUE(match("{embed,head}.weight", "head.weight"));
  EXPECT_TRUE(match("{embed,head}{_projection,}.weight", "head_projection.weight"));
  EXPECT_TRUE(match("{embed,head}{_projection,}.weight", "embed.weight"));
  EXPECT_TRUE(match("{a*,{b,c?}d}e", "cxde"));
  EXPECT_TRUE(match("{a*,{b,c?}d}e", "abce"));
  EXPECT_FALSE(match("{a*,{b,c?}d}e", "cde"));
  EXPECT_FALSE(match("embed", "embed.weight"));  // the whole name, not a part
  EXPECT_FALSE(match("", "x"));
  EXPECT_TRUE(match("[x]+.$", "[x]+.$"));  // nothing else is special
}

TEST(Glob, UnbalancedBracesAreErrorsThatQuoteThePattern) {
  for (const char* bad : {"{", "}", "a{b", "a}b", "{a,{b}", "}{", "{a}}"})
    EXPECT_THROW(Glob{bad}, Error) << bad;
  try {
    Glob("*.{attn,mlp.weight");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[pattern] '*.{attn,mlp.weight' has a { without its }");
  }
  EXPECT_THROW(Glob(std::string(2000, 'a')), Error);
  EXPECT_THROW(Glob(std::string(400, '{') + std::string(400, '}')), Error);
}

TEST(Glob, HostilePatternsStayPolynomial) {
  // A backtracking matcher needs more steps than atoms in the room for these.
  std::string stars, braces;
  for (int i = 0; i < 40; ++i) stars += "*a";
  for (int i = 0; i < 60; ++i) braces += "{a,aa,*}";
  const std::string name(500, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(Glob(stars + "b").matches(name));
  EXPECT_FALSE(Glob(braces + "b").matches(name));
  EXPECT_TRUE(Glob(stars).matches(name));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

// Star, question mark and one level of braces by plain recursion.
bool slow(std::string_view p, std::string_view s) {
  if (p.empty()) return s.empty();
  if (p[0] == '*') return slow(p.substr(1), s) || (!s.empty() && slow(p, s.substr(1)));
  if (p[0] == '{') {
    const size_t close = p.find('}');
    std::string_view inside = p.substr(1, close - 1);
    while (true) {
      const size_t comma = inside.find(',');
      if (slow(std::string(inside.substr(0, comma)) + std::string(p.substr(close + 1)), s)) return true;
      if (comma == std::string_view::npos) return false;
      inside = inside.substr(comma + 1);
    }
  }
  return !s.empty() && (p[0] == '?' || p[0] == s[0]) && slow(p.substr(1), s.substr(1));
}

TEST(Glob, AgreesWithPlainRecursionOnRandomPatterns) {
  const char* parts[] = {"a", "b", "*", "?", "{a,b}", "{ab,}", "{*a,b?}"};
  int hits = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    std::string pattern, name;
    const uint64_t bits = random_u64(1, 2, i), more = random_u64(1, 3, i);
    for (uint64_t k = 0; k < bits % 6; ++k) pattern += parts[(bits >> (8 + 8 * k)) % 7];
    for (uint64_t k = 0; k < more % 7; ++k) name += "abc"[(more >> (8 + 8 * k)) % 3];
    hits += slow(pattern, name);
    ASSERT_EQ(Glob(pattern).matches(name), slow(pattern, name)) << pattern << " on " << name;
  }
  EXPECT_GT(hits, 1000);
}

}  // namespace
}  // namespace osprey
