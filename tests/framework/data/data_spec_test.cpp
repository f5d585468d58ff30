#include "framework/data/data_spec.h"

#include <gtest/gtest.h>

#include "framework/config/reader.h"
#include "tests/framework/data/data_support.h"

namespace osprey {
namespace {

DataSpec read(const std::string& yaml) { return read_spec<DataSpec>(yaml, "recipe.yaml"); }

TEST(DataSpec, ReadsTheWordsOfARecipe) {
  const DataSpec data = read(
      "tokenizer: data/tok\ntrain: [ { path: \"a-*\", weight: 3 }, { path: b, weight: 1 } ]\n"
      "validation: [ { path: \"v-*\" } ]\nsequence_len: 2048\nattention_across_documents: false\n");
  ASSERT_EQ(data.train.size(), 2u);
  EXPECT_EQ(data.train[0].weight, 3.0);
  EXPECT_FALSE(data.validation[0].weight.has_value());
  EXPECT_EQ(data.sequence_len, 2048);
  EXPECT_FALSE(data.attention_across_documents);
}

TEST(DataSpec, WhatIsMissingOrHalfGivenIsNamed) {
  EXPECT_TRUE(contains(error_of([] { read("tokenizer: bytes\n"); }), "train"));
  EXPECT_TRUE(
      contains(error_of([] { read("tokenizer: bytes\ntrain: [ { path: a, weight: 1 }, { path: b } ]\n"); }),
               "some sources only"));
  EXPECT_TRUE(
      contains(error_of([] { read("tokenizer: bytes\ntrain: [ { path: a, weight: 0 } ]\n"); }), "weight"));
  EXPECT_TRUE(contains(error_of([] { read("tokenizer: bytes\ntrain: [ { path: a } ]\nsequence_len: 1\n"); }),
                       "sequence_len"));
}

}  // namespace
}  // namespace osprey
