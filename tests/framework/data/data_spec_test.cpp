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

TEST(DataSpec, APathSaysWhichKindOfDataItNames) {
  const DataSpec data = read(
      "tokenizer: bytes\ntrain: [ { path: \"a/*.jsonl\", format: alpaca }, { path: b.json } ]\n"
      "template: chatml\ntrain_on_inputs: true\npacking: false\noverlong: truncate\nvalidation_fraction: 0.02\n"
      "strict: true\n");
  EXPECT_TRUE(data.instructions());
  EXPECT_TRUE(data.documents_apart());
  EXPECT_EQ(data.train[0].format, InstructionFormat::alpaca);
  EXPECT_EQ(data.train[1].format, InstructionFormat::automatic);
  EXPECT_EQ(data.chat_template, "chatml");
  EXPECT_EQ(data.overlong, DataSpec::Overlong::truncate);
  EXPECT_FALSE(read("tokenizer: bytes\ntrain: [ { path: a } ]\n").instructions());
}

TEST(DataSpec, TheTwoKindsDoNotMix) {
  const auto error = [](const std::string& yaml) {
    return error_of([&] { read("tokenizer: bytes\n" + yaml); });
  };
  EXPECT_TRUE(
      contains(error("train: [ { path: a.jsonl }, { path: b } ]\n"), "mixes token shards and instruction"));
  EXPECT_TRUE(contains(error("train: [ { path: a } ]\nvalidation: [ { path: b.jsonl } ]\n"),
                       "another kind than train"));
  EXPECT_TRUE(contains(error("train: [ { path: a } ]\npacking: true\n"), "train names instruction data"));
  EXPECT_TRUE(contains(error("train: [ { path: a } ]\n").substr(0, 8), "no error"));
  EXPECT_TRUE(contains(error("train: [ { path: a, format: alpaca } ]\n"), "path ends in .jsonl or .json"));
  EXPECT_TRUE(
      contains(error("train: [ { path: a.jsonl } ]\nattention_across_documents: true\n"), "token shards"));
  EXPECT_TRUE(
      contains(error("train: [ { path: a.jsonl } ]\ntemplate: qwen\n"), "none of auto, chatml, llama3"));
  EXPECT_TRUE(contains(
      error("train: [ { path: a.jsonl } ]\nvalidation: [ { path: b.jsonl } ]\nvalidation_fraction: 0.1\n"),
      "take one of the two away"));
}

}  // namespace
}  // namespace osprey
