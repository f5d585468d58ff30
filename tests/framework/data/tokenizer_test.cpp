#include "framework/data/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "kernels/core/random.h"
#include "tests/framework/data/data_support.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

/// A few hundred lines of words with frequencies like those of a language.
std::vector<std::string> some_lines() {
  const std::vector<std::string> words = {"the",      "of",    "and",   "osprey", "fish",    "hawk",
                                          "river",    "wing",  "nest",  "diving", "catches", "large",
                                          "feathers", "white", "brown", "dive"};
  std::vector<std::string> lines;
  for (uint64_t i = 0; i < 400; ++i) {
    std::string line = i % 3 == 0 ? "   " : "";
    for (uint64_t w = 0; w < 9; ++w) {
      const uint64_t draw = random_u64(3, 4, i * 9 + w);
      line += words[(draw % 16) * ((draw >> 32) % 16) / 16] + (w == 8 ? "." : " ");
    }
    lines.push_back(line);
  }
  return lines;
}

std::unique_ptr<Tokenizer> small_bpe() {
  return train_sentencepiece({.kind = SentencepieceTraining::Kind::bpe, .vocab_size = 340}, some_lines());
}

const std::vector<std::string> kTexts = {
    "the osprey catches large fish",
    "   indented, with  two   runs\n\n   of spaces \n",
    "unseen: \xc3\xa7\xe2\x82\xac \xf0\x9f\x90\x9f 12345\ttab",
    "",
    "\nbegins with a newline",
};

TEST(Tokenizer, BytesAreBytes) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
  EXPECT_EQ(tokenizer->encode("a\xff"), (std::vector<int32_t>{97, 255}));
  for (const auto& text : kTexts) EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{97, 256}), "a");
  EXPECT_TRUE(contains(error_of([&] { tokenizer->decode(std::vector<int32_t>{257}); }), "token 257"));
}

TEST(Tokenizer, TrainedPiecesReturnTheTextExactly) {
  for (const auto kind : {SentencepieceTraining::Kind::bpe, SentencepieceTraining::Kind::unigram}) {
    const auto tokenizer = train_sentencepiece({.kind = kind, .vocab_size = 305}, some_lines());
    EXPECT_EQ(tokenizer->vocab_size(), 305);
    for (const auto& text : kTexts) EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    EXPECT_LT(tokenizer->encode(kTexts[0]).size(), kTexts[0].size() * 3 / 4);
    auto ended = tokenizer->encode(kTexts[0]);
    ended.push_back(tokenizer->eos_id());
    EXPECT_EQ(tokenizer->decode(ended), kTexts[0]);
    const std::string what = error_of([&] { tokenizer->decode(std::vector<int32_t>{305}); });
    EXPECT_TRUE(contains(what, "token 305") && contains(what, "vocabulary of 305")) << what;
  }
}

TEST(Tokenizer, TrainingIsDeterministic) {
  EXPECT_EQ(small_bpe()->fingerprint(), small_bpe()->fingerprint());
  auto other = some_lines();
  other.pop_back();
  other.push_back("entirely different words stand here");
  EXPECT_NE(small_bpe()->fingerprint(), train_sentencepiece({.vocab_size = 340}, other)->fingerprint());
}

TEST(Tokenizer, LongDocumentsEncodeAsIfWhole) {
  // The reference is one library call for the whole: below the cut length nothing is cut.
  const auto tokenizer = small_bpe();
  const auto lines = some_lines();
  std::string text;
  std::vector<int32_t> expected;
  for (uint64_t i = 0; text.size() < 400'000; ++i) {
    // Pieces end before a newline, so that whole equals parts with the space before the newline
    // dropped.
    const std::string line = (i ? "\n" : "") + lines[i % 400] + (i % 7 == 0 ? "\n\n" : "");
    auto ids = tokenizer->encode("x" + line);
    const auto x = tokenizer->encode("x");
    ASSERT_TRUE(std::equal(x.begin(), x.end(), ids.begin()) || i == 0);
    if (i == 0)
      ids = tokenizer->encode(line);
    else
      ids.erase(ids.begin(), ids.begin() + static_cast<long>(x.size()));
    expected.insert(expected.end(), ids.begin(), ids.end());
    text += line;
  }
  EXPECT_EQ(tokenizer->encode(text), expected);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(Tokenizer, SavedDirectoriesLoadAndCarryTheHuggingFaceFiles) {
  test::TempDir dir;
  const auto tokenizer = small_bpe();
  tokenizer->save(dir.path().string());
  for (const char* file : {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"})
    EXPECT_TRUE(std::filesystem::exists(dir / file)) << file;
  EXPECT_TRUE(contains(slurp((dir / "tokenizer_config.json").string()), "LlamaTokenizer"));
  for (const std::string& where : {dir.path().string(), (dir / "tokenizer.model").string()}) {
    const auto loaded = load_tokenizer(where);
    EXPECT_EQ(loaded->fingerprint(), tokenizer->fingerprint());
    EXPECT_EQ(loaded->encode(kTexts[0]), tokenizer->encode(kTexts[0]));
  }
  std::filesystem::remove(dir / "osprey_tokenizer.json");  // as in a directory from elsewhere
  EXPECT_EQ(load_tokenizer(dir.path().string())->fingerprint(), tokenizer->fingerprint());

  test::TempDir bytes;
  make_bytes_tokenizer()->save(bytes.path().string());
  EXPECT_EQ(load_tokenizer(bytes.path().string())->kind(), "bytes");
}

TEST(Tokenizer, ControlPiecesAreTheSpecialTokensOfASentencepieceModel) {
  const auto tokenizer = small_bpe();
  EXPECT_EQ(tokenizer->special_id("</s>"), tokenizer->eos_id());
  EXPECT_EQ(tokenizer->special_text(tokenizer->eos_id()), "</s>");
  EXPECT_EQ(tokenizer->special_id("the"), std::nullopt);
  EXPECT_EQ(tokenizer->special_text(tokenizer->encode("the")[0]), std::nullopt);
  std::vector<int32_t> found;
  tokenizer->encode_with_specials("<s>fish</s><s> hawk", found);
  std::vector<int32_t> expected = {*tokenizer->bos_id()};
  tokenizer->encode("fish", expected);
  expected.insert(expected.end(), {tokenizer->eos_id(), *tokenizer->bos_id()});
  tokenizer->encode(" hawk", expected);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("<s>fish</s>")), "<s>fish</s>");
}

TEST(Tokenizer, WhatStandsBesideASentencepieceModelIsCarriedAlong) {
  test::TempDir dir, copy;
  small_bpe()->save(dir.path().string());
  EXPECT_FALSE(load_tokenizer(dir.path().string())->adds_bos());
  std::filesystem::remove(dir / "osprey_tokenizer.json");  // as in a directory from elsewhere
  const std::string config = R"({"add_bos_token": true, "chat_template": "{{ x }}"})";
  spill((dir / "tokenizer_config.json").string(), config);
  const auto tokenizer = load_tokenizer(dir.path().string());
  EXPECT_TRUE(tokenizer->adds_bos());
  tokenizer->save(copy.path().string());
  EXPECT_EQ(slurp((copy / "tokenizer_config.json").string()), config);
  EXPECT_TRUE(load_tokenizer(copy.path().string())->adds_bos());
}

TEST(Tokenizer, WhatCannotBeLoadedIsNamedWithTheCure) {
  test::TempDir dir;
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer("/nowhere/tok"); }), "/nowhere/tok does not exist"));
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(""); }), "osprey prepare"));
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "neither"));

  small_bpe()->save(dir.path().string());
  const std::string model = (dir / "tokenizer.model").string(),
                    label = (dir / "osprey_tokenizer.json").string();
  const std::string good_model = slurp(model), good_label = slurp(label);
  spill(model, good_model + '\x0a');
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "tokenizer.model"));
  auto replaced = some_lines();
  replaced.resize(300);
  const auto other = train_sentencepiece({.vocab_size = 340}, replaced);
  test::TempDir elsewhere;
  other->save(elsewhere.path().string());
  spill(model, slurp((elsewhere / "tokenizer.model").string()));
  const std::string what = error_of([&] { load_tokenizer(dir.path().string()); });
  EXPECT_TRUE(contains(what, other->fingerprint()) && contains(what, "replaced or damaged")) << what;
  spill(model, "not a model");
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "not a sentencepiece model"));
  spill(label, "{\"kind\": \"words\", \"fingerprint\": \"x\"}");
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "`words`"));
  spill(label, "{");
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "osprey_tokenizer.json"));
}

TEST(Tokenizer, VocabulariesThatDoNotFitSayWhatWould) {
  const std::string large = error_of([] { train_sentencepiece({.vocab_size = 30000}, some_lines()); });
  EXPECT_TRUE(contains(large, "30000 is too large") && contains(large, "--vocab-size")) << large;
  const std::string small = error_of([] { train_sentencepiece({.vocab_size = 100}, some_lines()); });
  EXPECT_TRUE(contains(small, "100 is too small")) << small;
  EXPECT_TRUE(contains(error_of([] { train_sentencepiece({}, {}); }), "no text"));
  EXPECT_TRUE(contains(error_of([] { train_sentencepiece({}, {"", ""}); }), "tokenizer"));
}

}  // namespace
}  // namespace osprey
