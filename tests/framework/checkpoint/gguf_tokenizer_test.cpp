#include "framework/checkpoint/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "framework/data/tokenizer.h"
#include "framework/files/file.h"
#include "tests/support/fuzz.h"
#include "tests/support/gguf_reader.h"
#include "tests/support/refusal.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using nlohmann::json;
using test::GgufFile;
using test::refusal;
using test::TempDir;

/// The keys that a directory gives, read back.
std::map<std::string, json> keys_of(const std::filesystem::path& directory, int64_t vocab_size) {
  GgufKeys keys;
  add_gguf_tokenizer(keys, directory, vocab_size);
  const TempDir dir;
  GgufWriter(dir / "f", keys, {}).finish();
  return GgufFile(read_file(dir / "f", 1 << 24)).keys;
}

json byte_level(const json& pre_tokenizer) {
  return {{"added_tokens",
           {{{"id", 4}, {"content", "<|end|>"}, {"special", true}},
            {{"id", 6}, {"content", "<tool>"}, {"special", false}}}},
          {"pre_tokenizer", pre_tokenizer},
          {"post_processor", nullptr},
          {"model",
           {{"type", "BPE"},
            {"vocab", {{"a", 0}, {"b", 1}, {"Ġ", 2}, {"ab", 3}, {"<|end|>", 4}}},
            {"merges", {"a b", {"Ġ", "ab"}}}}}};
}

json split(const char* regex) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

const json gpt2 = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};

struct Folder {
  TempDir dir;
  void write(const char* name, const json& tree) const { std::ofstream(dir / name) << tree; }
};

TEST(GgufTokenizer, ByteLevelBpeIsWrittenWithAddedAndUnusedTokens) {
  Folder f;
  f.write("tokenizer.json", byte_level(gpt2));
  f.write("tokenizer_config.json", {{"chat_template", "{{ x }}"}, {"add_bos_token", false}});
  const auto keys = keys_of(f.dir.path(), 8);
  EXPECT_EQ(keys.at("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(keys.at("tokenizer.ggml.pre"), "gpt-2");
  EXPECT_EQ(keys.at("tokenizer.ggml.tokens"),
            json({"a", "b", "Ġ", "ab", "<|end|>", "[PAD5]", "<tool>", "[PAD7]"}));
  EXPECT_EQ(keys.at("tokenizer.ggml.token_type"), json({1, 1, 1, 1, 3, 5, 4, 5}));
  EXPECT_EQ(keys.at("tokenizer.ggml.merges"), json({"a b", "Ġ ab"}));
  EXPECT_EQ(keys.at("tokenizer.ggml.add_bos_token"), false);
  EXPECT_EQ(keys.at("tokenizer.chat_template"), "{{ x }}");
  std::ofstream(f.dir / "chat_template.jinja") << "a file of its own";
  EXPECT_EQ(keys_of(f.dir.path(), 8).at("tokenizer.chat_template"), "a file of its own");
}

TEST(GgufTokenizer, TheWayTextIsCutIsRecognisedOrRefused) {
  Folder f;
  const auto pre = [&](const json& pre_tokenizer) {
    f.write("tokenizer.json", byte_level(pre_tokenizer));
    return keys_of(f.dir.path(), 8).at("tokenizer.ggml.pre").get<std::string>();
  };
  EXPECT_EQ(
      pre(split(
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")),
      "llama-bpe");
  EXPECT_EQ(
      pre(split(
          R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")),
      "qwen2");
  EXPECT_EQ(pre({{"type", "Sequence"},
                 {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, gpt2}}}),
            "smollm");
  for (const json& bad : {split("x"), json{{"type", "Whitespace"}}, json(nullptr),
                          json{{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}}})
    EXPECT_NE(refusal([&] { pre(bad); }).find("tokenizer.json"), std::string::npos) << bad;
}

TEST(GgufTokenizer, AFirstTokenIsAddedWhereTheTemplateSaysSo) {
  Folder f;
  json tree = byte_level(gpt2);
  const auto adds = [&](const json& processor) {
    tree["post_processor"] = processor;
    f.write("tokenizer.json", tree);
    return keys_of(f.dir.path(), 8).at("tokenizer.ggml.add_bos_token").get<bool>();
  };
  const json bos = {{"type", "TemplateProcessing"},
                    {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  EXPECT_TRUE(adds(bos));
  EXPECT_TRUE(adds({{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, bos}}}));
  EXPECT_FALSE(adds({{"type", "ByteLevel"}}));
  EXPECT_FALSE(adds(nullptr));
}

TEST(GgufTokenizer, WhatIsWrongIsNamed) {
  Folder f;
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 8); }).find("neither tokenizer.model nor tokenizer.json"),
            std::string::npos);
  f.write("tokenizer.json", byte_level(gpt2));
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 6); }).find("<tool>"), std::string::npos);
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 3); }).find("below the model's 3 rows"), std::string::npos);
  json tree = byte_level(gpt2);
  tree["model"]["vocab"]["ab"] = 1;
  f.write("tokenizer.json", tree);
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 8); }).find("two tokens have the id 1"), std::string::npos);
  tree = byte_level(gpt2);
  tree["model"]["byte_fallback"] = true;
  f.write("tokenizer.json", tree);
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 8); }).find("no byte-level BPE"), std::string::npos);
  tree = byte_level(gpt2);
  tree["model"]["merges"] = {{"a", "b", "c"}};
  f.write("tokenizer.json", tree);
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), 8); }).find("a merge must be"), std::string::npos);
}

/// Trained on a few words. Returns the directory's vocabulary.
int64_t make_sentencepiece(const std::filesystem::path& directory, SentencepieceTraining::Kind kind) {
  std::vector<std::string> lines;
  for (int i = 0; i < 50; ++i) lines.push_back(fmt::format("the cat {} sat on the mat {}", i, i * i));
  const int64_t size = kind == SentencepieceTraining::Kind::bpe ? 300 : 279;  // all that unigram finds
  const auto tokenizer = train_sentencepiece({.kind = kind, .vocab_size = size}, lines);
  tokenizer->save(directory.string());
  return tokenizer->vocab_size();
}

TEST(GgufTokenizer, SentencepieceKeepsItsPiecesScoresAndTypes) {
  Folder f;
  const int64_t size = make_sentencepiece(f.dir.path(), SentencepieceTraining::Kind::bpe);
  const auto keys = keys_of(f.dir.path(), size + 2);
  EXPECT_EQ(keys.at("tokenizer.ggml.model"), "llama");
  const auto tokens = keys.at("tokenizer.ggml.tokens").get<std::vector<std::string>>();
  const auto types = keys.at("tokenizer.ggml.token_type").get<std::vector<int>>();
  const auto scores = keys.at("tokenizer.ggml.scores").get<std::vector<float>>();
  ASSERT_EQ(tokens.size(), static_cast<size_t>(size + 2));
  EXPECT_EQ(tokens.back(), fmt::format("[PAD{}]", size + 1));
  EXPECT_EQ(std::count(types.begin(), types.end(), 6), 256);  // bytes
  EXPECT_EQ(std::count(types.begin(), types.end(), 5), 2);
  EXPECT_EQ(types[0], 2);
  const auto the = std::find(tokens.begin(), tokens.end(), "▁the") - tokens.begin();
  const auto cat = std::find(tokens.begin(), tokens.end(), "at") - tokens.begin();
  ASSERT_LT(the, size);
  ASSERT_LT(cat, size);
  EXPECT_EQ(scores[static_cast<size_t>(cat)] > scores[static_cast<size_t>(the)],
            cat < the);                                       // the earlier the better
  EXPECT_EQ(keys.at("tokenizer.ggml.add_bos_token"), false);  // as its tokenizer_config.json says
}

TEST(GgufTokenizer, UnigramModelsAreRefused) {
  Folder f;
  const int64_t size = make_sentencepiece(f.dir.path(), SentencepieceTraining::Kind::unigram);
  EXPECT_NE(refusal([&] { keys_of(f.dir.path(), size); }).find("no BPE model"), std::string::npos);
}

TEST(GgufTokenizer, MutatedFilesAreReadOrRefusedButNeverCrashFuzz) {
  Folder f;
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(f.dir / name, std::ios::binary) << text;
  };
  const auto json_count =
      test::fuzz({byte_level(gpt2).dump()}, {"null", "-1", "[]", "{}", "\"id\"", "99999999999"},
                 [&](const std::string& input) {
                   write("tokenizer.json", input);
                   GgufKeys keys;
                   add_gguf_tokenizer(keys, f.dir.path(), 8);
                 });
  EXPECT_GT(json_count.refused, 100);
  write("tokenizer.json", byte_level(gpt2).dump());
  make_sentencepiece(f.dir.path(), SentencepieceTraining::Kind::bpe);
  const std::string model = read_file(f.dir / "tokenizer.model", 1 << 20);
  const auto model_count =
      test::fuzz({model}, {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "\x0a", "\x12\x7f"},
                 [&](const std::string& input) {
                   write("tokenizer.model", input);
                   GgufKeys keys;
                   add_gguf_tokenizer(keys, f.dir.path(), 1000);
                 });
  EXPECT_GT(model_count.refused, 100);
}

}  // namespace
}  // namespace osprey
