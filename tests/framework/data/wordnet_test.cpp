#include "framework/data/wordnet.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/framework/data/data_support.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

const std::string kDictionary =
    "\n00-database-info\nThis file was converted.\n          Indented words: none\n\nhappy\n"
    "    adj 1: enjoying or showing\n           joy; \"a happy smile\"; \"happy\n           days\" [ant: {unhappy}]\n"
    "    2: marked by good fortune [syn: {felicitous},\n       {happy}]\n"
    "osprey\n    n 1: large harmless hawk [syn: {osprey}, {fish hawk}, {seahawk}]\n    v 1: to be made up for this test\n";

TEST(Wordnet, SensesHaveTheirParts) {
  const auto entries = parse_wordnet(kDictionary);
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].word, "happy");
  ASSERT_EQ(entries[0].senses.size(), 2u);
  const WordSense& first = entries[0].senses[0];
  EXPECT_EQ(first.part, "adjective");
  EXPECT_EQ(first.definition, "enjoying or showing joy");
  EXPECT_EQ(first.examples, (std::vector<std::string>{"a happy smile", "happy days"}));
  EXPECT_EQ(first.antonyms, std::vector<std::string>{"unhappy"});
  EXPECT_EQ(entries[0].senses[1].part, "adjective");
  EXPECT_EQ(entries[0].senses[1].synonyms, (std::vector<std::string>{"felicitous", "happy"}));
  EXPECT_EQ(entries[1].senses[0].part, "noun");
  EXPECT_EQ(entries[1].senses[1].part, "verb");
  EXPECT_TRUE(contains(error_of([] { parse_wordnet("no\nentries\n"); }), "holds no entry"));
}

TEST(Wordnet, RowsAskInEveryWayAndWordsDoNotLeak) {
  test::TempDir dir;
  std::string text = kDictionary;
  for (int i = 0; i < 400; ++i) {
    const std::string word = fmt::format("{}word", std::string(1 + i / 26, static_cast<char>('a' + i % 26)));
    text += fmt::format("{}\n    n 1: thing number {} [syn: {{other}}]\n", word,
                        i / 2);  // two words, one meaning
  }
  spill((dir / "wn.dict").string(), text);
  const auto write = [&](const std::string& name) {
    return write_wordnet({.dictionary = (dir / "wn.dict").string(),
                          .output = (dir / name).string(),
                          .words = 300,
                          .validation_fraction = 0.3,
                          .seed = 1});
  };
  const WordnetSummary s = write("a");
  write("b");
  EXPECT_EQ(s.words, 300);
  for (const char* file : {"train.jsonl", "validation.jsonl"})
    EXPECT_EQ(slurp((dir / "a" / file).string()), slurp((dir / "b" / file).string()));
  std::set<std::string> definitions[2];
  int64_t rows[2] = {0, 0};
  for (const int side : {0, 1}) {
    std::istringstream lines(slurp((dir / "a" / (side ? "validation.jsonl" : "train.jsonl")).string()));
    for (std::string line; std::getline(lines, line); ++rows[side]) {
      const auto row = nlohmann::json::parse(line);
      const std::string instruction = row["instruction"];
      if (instruction.starts_with("Define")) definitions[side].insert(row["output"]);
      if (instruction.starts_with("Which")) EXPECT_TRUE(definitions[side].contains(row["input"]));
    }
  }
  EXPECT_EQ(rows[0], s.train_rows);
  EXPECT_EQ(rows[1], s.validation_rows);
  EXPECT_GT(rows[1], 20);
  for (const std::string& d : definitions[1]) EXPECT_FALSE(definitions[0].contains(d)) << d;
  EXPECT_TRUE(contains(error_of([&] { write("a"); }), "exists already"));
  EXPECT_TRUE(
      contains(error_of([&] { write_wordnet({.dictionary = "/nowhere", .output = (dir / "c").string()}); }),
               "install Debian's package dict-wn"));
}

TEST(Wordnet, AnyTextIsReadOrRefused) {
  const auto count = test::fuzz({kDictionary}, {"[syn:", "{", "}", "]", "\n    n 1: ", "; \"", ": "},
                                [](const std::string& input) { parse_wordnet(input); });
  EXPECT_GT(count.accepted, 0);
}

}  // namespace
}  // namespace osprey
