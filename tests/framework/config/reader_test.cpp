#include "framework/config/reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "framework/config/dumper.h"
#include "framework/config/yaml.h"
#include "kernels/core/check.h"
#include "tests/framework/config/toy_spec.h"
#include "tests/support/fuzz.h"

namespace osprey {
namespace {

using toy::Toy;

Toy read(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return read_spec<Toy>(text, "r.yaml", overrides);
}

/// The message that reading `text` gives; empty when it is accepted.
std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    read(text, overrides);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Reader, ReadsEveryKindOfField) {
  const Toy t = read(toy::valid_text);
  EXPECT_EQ(t.name, "first");
  EXPECT_EQ(t.model.hidden_size, 64);
  EXPECT_EQ(t.model.norm.kind, toy::Norm::Kind::ssnorm);
  EXPECT_EQ(t.model.norm.eps, 1e-5);
  EXPECT_EQ(t.model.norm.scale, 0.5);
  ASSERT_EQ(t.optim.size(), 2u);
  EXPECT_EQ(t.optim[0].match, "*.weight");
  EXPECT_EQ(t.optim[1].betas, (std::vector<double>{0.8, 0.9}));
  EXPECT_EQ(t.paths, (std::vector<std::string>{"data/a b", "c.txt"}));
  EXPECT_EQ(t.tokens, 100'000'000'000);
  EXPECT_EQ(t.watch->steps, 4194304);
  EXPECT_EQ(t.keep, 3) << "an absent option keeps its default";
}

TEST(Reader, NullSwitchesAnOptionOff) {
  EXPECT_FALSE(read("model: {hidden_size: 4}\nkeep: null\n").keep);
  EXPECT_FALSE(read("model: {hidden_size: 4}\nwatch: ~\n").watch);
}

TEST(Reader, UnknownKeyNamesTheNearestAndAllOthers) {
  EXPECT_EQ(error("model:\n  hidden_size: 4\n  hiden_sise: 8\n"),
            "r.yaml:3: model.hiden_sise is not a key; did you mean hidden_size? (keys of model: hidden_size, "
            "heads, "
            "tied, norm)");
  EXPECT_EQ(error("model: {hidden_size: 4}\nlearning_rate: 5\noptim: [{match: a, learning_rate: 1}]\n"),
            "r.yaml:2: learning_rate is not a key (keys of the recipe: name, model, optim, paths, keep, "
            "tokens, note, "
            "watch, max_grad_norm); there is one in optim.0");
}

TEST(Reader, WrongTypesSayWhatWasExpectedAndWhatWasFound) {
  EXPECT_EQ(error("model: {hidden_size: abc}"),
            "r.yaml:1: model.hidden_size must be a whole number, got \"abc\"");
  EXPECT_EQ(error("model: {hidden_size: 1.5}"),
            "r.yaml:1: model.hidden_size must be a whole number, got \"1.5\"");
  EXPECT_EQ(error("model: {hidden_size: \"4\"}"),
            "r.yaml:1: model.hidden_size must be a whole number, got \"4\"");
  EXPECT_EQ(error("model: {hidden_size: [4]}"),
            "r.yaml:1: model.hidden_size must be a whole number, got a list");
  EXPECT_EQ(error("model: {hidden_size: 4, tied: yes}"),
            "r.yaml:1: model.tied must be true or false, got \"yes\"");
  EXPECT_EQ(error("model: 5"), "r.yaml:1: model must be a section of keys, got \"5\"");
  EXPECT_EQ(error("model: {hidden_size: 4}\noptim: {match: a}"),
            "r.yaml:2: optim must be a list (entries begin with a dash), got a section");
  EXPECT_EQ(error("model: {hidden_size: 4}\nname: {}"), "r.yaml:2: name must be a text, got a section");
  EXPECT_EQ(error("model: {hidden_size: 4}\nmax_grad_norm: null"),
            "r.yaml:2: max_grad_norm must be a number, got nothing");
  EXPECT_EQ(error("model: {hidden_size: 4, norm: {kind: ssnrm}}"),
            "r.yaml:1: model.norm.kind must be one of rmsnorm, ssnorm, got \"ssnrm\"; did you mean ssnorm?");
}

TEST(Reader, LimitsAndRulesNameTheKey) {
  EXPECT_EQ(error("model: {hidden_size: 0}"), "r.yaml:1: model.hidden_size must be at least 1, got 0");
  EXPECT_EQ(error("model: {hidden_size: 4, norm: {eps: 0}}"),
            "r.yaml:1: model.norm.eps must be more than 0, got 0");
  EXPECT_EQ(error("model:\n  hidden_size: 6\n  heads: 4\n"),
            "r.yaml:3: model.heads: must divide hidden_size");
  EXPECT_EQ(error("model: {hidden_size: 4}\noptim:\n  - {match: a, learning_rate: 1, betas: [0.5]}"),
            "r.yaml:3: optim.0.betas: must hold two numbers");
}

TEST(Reader, RulesOverValuesThatFailedToParseStaySilent) {
  EXPECT_EQ(error("model:\n  hidden_size: 7\n  heads: x\n"),
            "r.yaml:3: model.heads must be a whole number, got \"x\"");
}

TEST(Reader, MissingValuesAreNamed) {
  EXPECT_EQ(error("name: a"), "r.yaml:1: model.hidden_size is required");
  EXPECT_EQ(error(""), "r.yaml: model.hidden_size is required");
  EXPECT_EQ(error("model: {hidden_size: 4}\noptim:\n  - learning_rate: 1\n"),
            "r.yaml:3: optim.0.match is required");
  EXPECT_EQ(error("model: {hidden_size: 4}\noptim:\n  - match: a\n"),
            "r.yaml:3: optim.0.learning_rate is required");
}

TEST(Reader, AKeyWhoseConditionDoesNotHoldQuotesTheCondition) {
  EXPECT_EQ(error("model: {hidden_size: 4, norm: {scale: 2}}"),
            "r.yaml:1: model.norm.scale only applies when kind is ssnorm");
}

TEST(Reader, AKeyWhoseConditionIsUnknownIsNotASecondError) {
  EXPECT_EQ(error("model: {hidden_size: 4, norm: {kind: ssnorn, scale: 2}}"),
            "r.yaml:1: model.norm.kind must be one of rmsnorm, ssnorm, got \"ssnorn\"; did you mean ssnorm?");
}

TEST(Reader, DuplicateKeysAreRefused) {
  EXPECT_EQ(error("model:\n  hidden_size: 4\n  hidden_size: 8\n"),
            "r.yaml:3: model.hidden_size is given twice, first on line 2");
}

TEST(Reader, AllProblemsAreReportedTogetherInTheOrderOfTheFile) {
  EXPECT_EQ(error("naem: a\nmodel:\n  hidden_size: -4\nkeep: 0\n", {"tokens=x"}),
            "r.yaml:1: naem is not a key; did you mean name? (keys of the recipe: name, model, optim, paths, "
            "keep, tokens, "
            "note, watch, max_grad_norm)\n"
            "r.yaml:3: model.hidden_size must be at least 1, got -4\n"
            "r.yaml:4: keep must be at least 1, got 0\n"
            "--set tokens=x: tokens must be a whole number, got \"x\"");
  std::string many = "model: {hidden_size: 4}\n";
  for (int i = 0; i < 50; ++i) many += "zzzzzz" + std::to_string(i) + ": 1\n";
  const std::string text = error(many);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 20);
  EXPECT_NE(text.find("... and 30 more problems"), std::string::npos) << text;
}

TEST(Reader, OverridesReachIntoSectionsAndLists) {
  const Toy t = read(toy::valid_text,
                     {"optim.1.learning_rate=2e-3", "model.norm.kind=rmsnorm", "model.norm={eps: 1e-4}",
                      "optim.0.match=*", "tokens=null", "paths=[x, y]", "watch.steps=5", "name=\"a: b\""});
  EXPECT_EQ(t.optim[1].learning_rate, 2e-3);
  EXPECT_EQ(t.model.norm.eps, 1e-4);
  EXPECT_EQ(t.optim[0].match, "*");
  EXPECT_FALSE(t.tokens);
  EXPECT_EQ(t.paths, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(t.watch->steps, 5);
  EXPECT_EQ(t.name, "a: b");
  EXPECT_EQ(read("", {"model.hidden_size=8"}).model.hidden_size, 8);
}

TEST(Reader, WrongOverridesNameThemselves) {
  EXPECT_EQ(
      error(toy::valid_text, {"model.hiden_size=8"}),
      "--set model.hiden_size=8: model.hiden_size is not a key; did you mean hidden_size? (keys of model: "
      "hidden_size, heads, tied, norm)");
  EXPECT_EQ(error(toy::valid_text, {"optim.2.match=a"}),
            "--set optim.2.match=a: optim is a list of 2; 2 is none of its indices (the first is 0)");
  EXPECT_EQ(error(toy::valid_text, {"name.x=8"}),
            "--set name.x=8: name is a single value in the recipe, so x cannot stand below it");
  EXPECT_EQ(error(toy::valid_text, {"name"}), "--set name: must read key.path=value");
  EXPECT_EQ(error(toy::valid_text, {"model..x=1"}), "--set model..x=1: has an empty word in its key path");
  EXPECT_NE(error(toy::valid_text, {"paths=[a"}), "");
}

TEST(Reader, SyntaxErrorsNameTheLine) {
  EXPECT_EQ(error("model:\n\thidden_size: 4\n"), "r.yaml:2: is indented with a tab; use spaces");
  EXPECT_TRUE(error("model: {hidden_size: 4\nname: a\n").starts_with("r.yaml:2: is not valid YAML: "))
      << error("model: {hidden_size: 4\nname: a\n");
  EXPECT_TRUE(error("name: a\n  model: b\n").starts_with("r.yaml:")) << error("name: a\n  model: b\n");
  EXPECT_EQ(error("- a\n"), "r.yaml:1: a recipe is a map of sections, got a list");
  EXPECT_EQ(error("name: a\n---\nname: b\n"), "r.yaml:2: begins a second document; a recipe is one document");
}

TEST(Reader, WhatRecipesDoNotNeedIsRefused) {
  EXPECT_EQ(error("name: &a x\n"), "r.yaml:1: uses an anchor (&name); write the value out");
  EXPECT_TRUE(error("name: *a\n").starts_with("r.yaml:1: ")) << error("name: *a\n");
  EXPECT_EQ(error("name: !!str x\n"), "r.yaml:1: uses the tag tag:yaml.org,2002:str; a recipe needs none");
  EXPECT_EQ(error("name: \"a\x04\"\n"), "r.yaml:1: holds the control character 0x04; a recipe is plain text");
  EXPECT_EQ(error("a: 1\nname: \xff\xfe\n"), "r.yaml:2: is not UTF-8 text");
  EXPECT_EQ(error("? [a]\n: b\n"),
            "r.yaml:1: has a list or a map as a key, or a bracket left open; keys are words");
}

TEST(Reader, HostileSizesAndDepthsEndQuickly) {
  const auto begin = std::chrono::steady_clock::now();
  const auto repeat = [](const std::string& piece, size_t bytes) {
    std::string text;
    while (text.size() + piece.size() <= bytes) text += piece;
    return text;
  };
  constexpr size_t full = yaml::max_text_bytes - 100;
  EXPECT_EQ(error("a: " + repeat("[", 40) + repeat("]", 40)), "r.yaml:1: nests deeper than 32 levels");
  EXPECT_NE(error(repeat("[", full)), "");
  EXPECT_NE(error(repeat("{a: ", full)), "");
  EXPECT_NE(error(repeat("- ", full)), "");
  EXPECT_NE(error("paths: [" + repeat("a,", full) + "]"), "");
  EXPECT_NE(error(repeat("a: 1\n", full)), "");
  EXPECT_NE(error(repeat("? ", full)), "");
  EXPECT_NE(error("name: " + repeat("x", yaml::max_text_bytes)), "");
  EXPECT_NE(error("x" + repeat("y", full) + ": 1\n"), "");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 20.0) << "some input costs far more than its size";
}

TEST(Reader, FilesThatAreNoRecipeAreRefused) {
  EXPECT_THROW(load_yaml_text("/nonexistent/r.yaml"), Error);
  EXPECT_THROW(load_yaml_text("/tmp"), Error);
  EXPECT_THROW(load_yaml_text("/dev/zero"), Error);
}

TEST(Reader, NearestFindsWhatAPersonMeant) {
  const std::vector<std::string> keys{"sequence_len", "hidden_size", "heads", "kv_heads"};
  EXPECT_EQ(nearest("sequence_length", keys), "sequence_len");
  EXPECT_EQ(nearest("hidden-size", keys), "hidden_size");
  EXPECT_EQ(nearest("haeds", keys), "heads");
  EXPECT_EQ(nearest("size", keys), "hidden_size");
  EXPECT_EQ(nearest("zzz", keys), "");
}

const std::vector<std::string> yaml_words{
    "[",    "]",   "{",        "}",    ": ",  "- ",    "\n",    "  ", "\t",          "\"",    "'",
    "&a ",  "*a",  "!!x ",     "|\n",  ">\n", "? ",    "---\n", "#",  "%YAML 1.9\n", "1e999", "null",
    "<<: ", "\\x", "\xc3\xa9", "\xff", ",",   "...\n", "@",     "`",  "0x1",         "-"};

TEST(Reader, FuzzedRecipesAreReadOrRefusedButNeverWorse) {
  const test::FuzzCount count = test::fuzz({toy::valid_text}, yaml_words, [](const std::string& text) {
    const Toy spec = read(text);
    std::string dump;
    EXPECT_NO_THROW(dump = dump_spec(spec)) << text;
    EXPECT_NO_THROW(EXPECT_EQ(read_spec<Toy>(dump, "dump"), spec) << text) << text;
  });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

TEST(Reader, FuzzedOverridesAreReadOrRefusedButNeverWorse) {
  const std::vector<std::string> seeds{"optim.0.learning_rate=2e-3", "paths=[a, {b: c}]",
                                       "model.norm={kind: ssnorm}"};
  const test::FuzzCount count =
      test::fuzz(seeds, yaml_words, [](const std::string& text) { read(toy::valid_text, {text}); });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey
