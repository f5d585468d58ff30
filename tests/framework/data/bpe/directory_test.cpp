// A directory from Hugging Face as a tokenizer: which files say what begins and ends a text, and what is
// refused.

#include "tests/framework/data/bpe/golden.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

using Files = std::vector<std::pair<std::string, std::string>>;
using Ids = std::vector<int32_t>;

/// Loads golden/`family` with these files beside it.
std::unique_ptr<Tokenizer> load_with(const std::string& family, const Files& files) {
  test::TempDir dir;
  test::spill_tokenizer(dir.path().string(), test::golden_json(family));
  for (const auto& [name, text] : files) spill((dir / name).string(), text);
  return load_tokenizer(dir.path().string());
}

TEST(BpeDirectory, WordsOfTheTokenizerComeBeforeNumbersOfTheModel) {
  const auto ids = load_with(
      "qwen2", {{"tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<|im_end|>"},
                                                                     "add_bos_token": false})"},
                {"config.json", R"({"bos_token_id": 1500, "eos_token_id": 1500})"},
                {"generation_config.json", R"({"eos_token_id": [1502, 1500]})"}});
  EXPECT_EQ(ids->eos_id(), 1502);
  EXPECT_EQ(ids->bos_id(), std::nullopt);
  EXPECT_FALSE(ids->adds_bos());
  EXPECT_EQ(ids->stop_ids(), (Ids{1502, 1500}));
}

TEST(BpeDirectory, TheModelsFilesSayItWhereTheTokenizersDoNot) {
  const auto map = load_with("qwen2", {{"special_tokens_map.json", R"({"eos_token": "<|endoftext|>"})"},
                                       {"config.json", R"({"bos_token_id": 1501, "eos_token_id": [1502]})"}});
  EXPECT_EQ(map->eos_id(), 1500);
  EXPECT_EQ(map->bos_id(), 1501);
  EXPECT_EQ(map->stop_ids(), (Ids{1500, 1502}));
  EXPECT_EQ(load_with("qwen2", {{"config.json", R"({"eos_token_id": 1502})"}})->eos_id(), 1502);
}

TEST(BpeDirectory, ThePostProcessorSaysWhetherTextsBeginWithATokenUnlessTheConfigDoes) {
  const std::string end = R"("eos_token": "<|eot_id|>")";
  const auto llama3 = load_with("llama3", {{"tokenizer_config.json", "{" + end + "}"}});
  EXPECT_TRUE(llama3->adds_bos());
  EXPECT_EQ(llama3->bos_id(), llama3->special_id("<|begin_of_text|>"));
  EXPECT_FALSE(load_with("llama3", {{"tokenizer_config.json", "{" + end + R"(, "add_bos_token": false})"}})
                   ->adds_bos());
  EXPECT_TRUE(load_with("llama2", {{"tokenizer_config.json",
                                    R"({"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": true})"}})
                  ->adds_bos());
}

TEST(BpeDirectory, WhatIsSavedNoLongerNeedsTheModelsFiles) {
  const auto tokenizer =
      load_with("qwen2", {{"config.json", R"({"bos_token_id": 1501, "eos_token_id": 1500})"},
                          {"generation_config.json", R"({"eos_token_id": [1502, 1500]})"},
                          {"chat_template.jinja", "{{ messages }}"}});
  test::TempDir dir;
  tokenizer->save(dir.path().string());
  EXPECT_FALSE(std::filesystem::exists(dir / "generation_config.json"));
  EXPECT_EQ(slurp((dir / "chat_template.jinja").string()), "{{ messages }}");
  const auto loaded = load_tokenizer(dir.path().string());
  EXPECT_EQ(loaded->eos_id(), 1502);
  EXPECT_EQ(loaded->bos_id(), 1501);
  EXPECT_EQ(loaded->stop_ids(), (Ids{1502, 1500}));
  EXPECT_EQ(loaded->fingerprint(), tokenizer->fingerprint());
  const std::string label = (dir / "osprey_tokenizer.json").string(), good = slurp(label);
  std::string bad = good;
  bad.replace(bad.find("\"bos_id\": 1501"), 14, "\"bos_id\": 9999");
  spill(label, bad);
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }),
                       "fewer than osprey_tokenizer.json names"));
  spill(label, good);
  spill((dir / "tokenizer.json").string(), test::golden_json("smollm"));
  EXPECT_TRUE(contains(error_of([&] { load_tokenizer(dir.path().string()); }), "replaced or damaged"));
}

TEST(BpeDirectory, TheFileItselfMayBeNamed) {
  test::TempDir dir;
  const auto whole = test::golden_tokenizer(dir.path().string(), "gpt2");
  EXPECT_EQ(load_tokenizer((dir / "tokenizer.json").string())->fingerprint(), whole->fingerprint());
}

TEST(BpeDirectory, WhatTheFilesSayWronglyIsNamed) {
  const auto refused = [](const std::string& words, const Files& files) {
    const std::string said = error_of([&] { load_with("qwen2", files); });
    EXPECT_TRUE(contains(said, words)) << said;
  };
  refused("give `eos_token` in tokenizer_config.json", {});
  refused("`eos_token` is '<|eot|>', which the tokenizer does not have",
          {{"tokenizer_config.json", R"({"eos_token": "<|eot|>"})"}});
  refused("`eos_token_id` is 9999, expected a token of the tokenizer, which has 1505",
          {{"generation_config.json", R"({"eos_token_id": [1500, 9999]})"},
           {"config.json", R"({"eos_token_id": 1500})"}});
  refused("neither text nor an object", {{"tokenizer_config.json", R"({"eos_token": 7})"}});
  refused("not a JSON object", {{"tokenizer_config.json", "[]"}});
  refused("`add_bos_token` is neither",
          {{"tokenizer_config.json", R"({"eos_token": "<|im_end|>", "add_bos_token": 1})"}});
}

TEST(BpeDirectory, WhatTokenizerJsonHasThatOspreyDoesNotKnowIsNamed) {
  const auto refused = [](const std::string& words, const auto& change) {
    auto json = nlohmann::json::parse(test::golden_json("qwen2"));
    change(json);
    test::TempDir dir;
    test::spill_tokenizer(dir.path().string(), json.dump(), R"({"eos_token": "<|im_end|>"})");
    const std::string said = error_of([&] { load_tokenizer(dir.path().string()); });
    EXPECT_TRUE(contains(said, words)) << said;
    EXPECT_TRUE(contains(said, "tokenizer.json")) << said;
  };
  using J = nlohmann::json;
  refused("model.type is Unigram; Osprey reads BPE", [](J& j) { j["model"]["type"] = "Unigram"; });
  refused("model.dropout is set", [](J& j) { j["model"]["dropout"] = 0.1; });
  refused("model.end_of_word_suffix is set", [](J& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  refused("model.unk_token is not in the vocabulary", [](J& j) { j["model"]["unk_token"] = "<unk>"; });
  refused("model.vocab gives the number 7 twice", [](J& j) { j["model"]["vocab"]["!!!!!"] = 7; });
  refused("model.vocab gives '!!!!!' the number -1", [](J& j) { j["model"]["vocab"]["!!!!!"] = -1; });
  refused("model.vocab has 1501 tokens, but numbers up to 16000000",
          [](J& j) { j["model"]["vocab"]["!!!!!"] = 16'000'000; });
  refused("model.merges[0] needs '!!!!!!'", [](J& j) { j["model"]["merges"][0] = {"!!!!!!", "a"}; });
  refused("model.merges[1] is not two tokens", [](J& j) { j["model"]["merges"][1] = "abc"; });
  refused("model gives the number 5 to", [](J& j) { j["added_tokens"][0]["id"] = 5; });
  refused("but added_tokens the number 1501", [](J& j) { j["added_tokens"][1]["content"] = "th"; });
  refused("added_tokens gives the number 1501 twice", [](J& j) { j["added_tokens"][0]["id"] = 1501; });
  refused("added_tokens[1].content is '<|endoftext|>' for the second time",
          [](J& j) { j["added_tokens"][1]["content"] = "<|endoftext|>"; });
  refused("normalizer is of type `NFKC`", [](J& j) { j["normalizer"]["type"] = "NFKC"; });
  refused("pre_tokenizer is of type `Whitespace`", [](J& j) { j["pre_tokenizer"]["type"] = "Whitespace"; });
  refused("pre_tokenizer.pretokenizers[0] has behavior Removed",
          [](J& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; });
  refused("pretokenizers[0].pattern.Regex",
          [](J& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "^a"; });
  refused("stands behind ByteLevel", [](J& j) {
    auto& steps = j["pre_tokenizer"]["pretokenizers"];
    std::swap(steps[0], steps[1]);
  });
  refused("decoder is of type `WordPiece`", [](J& j) { j["decoder"]["type"] = "WordPiece"; });
  refused("post_processor is of type `RobertaProcessing`",
          [](J& j) { j["post_processor"]["type"] = "RobertaProcessing"; });
}

TEST(BpeDirectory, ATextThatTheVocabularyCannotSpellIsRefused) {
  auto json = nlohmann::json::parse(test::golden_json("gpt2"));
  json["model"]["vocab"].erase("!");
  json["model"]["merges"] = nlohmann::json::array();
  test::TempDir dir;
  test::spill_tokenizer(dir.path().string(), json.dump(), R"({"eos_token": "<|endoftext|>"})");
  const auto tokenizer = load_tokenizer(dir.path().string());
  EXPECT_TRUE(contains(error_of([&] { tokenizer->encode("hi!"); }), "no token for the byte 0x21"));
}

}  // namespace
}  // namespace osprey
