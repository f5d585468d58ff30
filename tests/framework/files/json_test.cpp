#include "framework/files/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/core/check.h"

namespace osprey {
namespace {

TEST(Json, DuplicateKeysDeepNestingAndGarbageAreRefusedNamingTheFile) {
  EXPECT_EQ(parse_json("f", R"({"a":{"x":1},"b":{"x":2}})", 2)["b"]["x"], 2);
  for (const char* bad : {R"({"a":1,"a":1})", R"({"a":{"b":{}}})", R"([[[]]])", "", "{", "{}x", "\xff",
                          R"({"a":{"x":1,"x":1}})"})
    try {
      parse_json("f.json", bad, 2);
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()).rfind("[f.json]", 0), 0u) << e.what();
    }
}

TEST(Json, WhatStandsBehindANulIsNotOverlooked) {
  EXPECT_THROW(parse_json("f", std::string_view("{}\0{", 4), 4), Error);
}

TEST(Json, AMillionOpenBracketsAreRefusedAtOnce) {
  EXPECT_THROW(parse_json("f", std::string(1'000'000, '['), 16), Error);
}

}  // namespace
}  // namespace osprey
