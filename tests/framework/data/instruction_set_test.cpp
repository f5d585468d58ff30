#include "framework/data/instruction_set.h"

#include <gtest/gtest.h>

#include <numeric>

#include "framework/data/instruction_data.h"
#include "tests/framework/data/data_support.h"
#include "tests/framework/data/special_bytes.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

class InstructionSetTest : public testing::Test {
 protected:
  struct Result {
    InstructionSet kept, held_out;
    InstructionCounts counts;
  };
  Result read(const std::string& text, const DataSpec& spec, int threads = 1) {
    const std::string path = (dir_ / "rows.jsonl").string();
    spill(path, text);
    SourceSpec source;
    source.path = path;
    const auto chat = make_named_template("none", tokenizer_);
    Result result;
    read_instructions(source, spec,
                      {.tokenizer = tokenizer_,
                       .chat_template = *chat,
                       .vocab_size = tokenizer_.vocab_size(),
                       .seed = 7,
                       .threads = threads},
                      result.kept, &result.held_out, result.counts);
    return result;
  }
  DataSpec spec(int64_t sequence_len = 16) {
    DataSpec spec;
    spec.sequence_len = sequence_len;
    return spec;
  }
  std::string shown(const InstructionSet& set, int64_t row) {
    const auto tokens = set.tokens(row);
    const auto trained = set.trained(row);
    return tokenizer_.shown({{tokens.begin(), tokens.end()}, {trained.begin(), trained.end()}});
  }
  test::TempDir dir_;
  SpecialBytes tokenizer_;
};

TEST_F(InstructionSetTest, RowsBecomeTokensAndEveryOneIsAccountedFor) {
  const Result r = read(
      "{\"prompt\":\"ask\",\"completion\":\"say\"}\n"
      "{\"prompt\":\"this is far too long for it\",\"completion\":\"say\"}\n\n"
      "{\"prompt\":\"ask\"\n"
      "{\"prompt\":\"ask\",\"completion\":\"\"}\n"
      "{\"prompt\":\"a\",\"completion\":\"\\u00e9\"}\n",
      spec());
  ASSERT_EQ(r.kept.size(), 2);
  EXPECT_EQ(shown(r.kept, 0), "<s>ask[say</s>]");
  EXPECT_EQ(shown(r.kept, 1), "<s>a[\xc3\xa9</s>]");
  EXPECT_EQ(r.counts.rows, 5);
  EXPECT_EQ(r.counts.kept, 2);
  EXPECT_EQ(r.counts.tokens, 13);
  EXPECT_EQ(r.counts.trained_tokens, 7);
  ASSERT_EQ(r.counts.dropped.size(), 3u);
  EXPECT_EQ(r.counts.dropped.at("an answer is empty").first, (dir_ / "rows.jsonl:5").string());
  EXPECT_EQ(r.counts.dropped.at("it is longer than data.sequence_len").first,
            (dir_ / "rows.jsonl:2: 32 tokens, 16 fit").string());
  EXPECT_EQ(r.counts.dropped.at("it is not JSON, or not fit to be read").rows, 1);
  EXPECT_TRUE(contains(describe("data.train", r.counts)[0],
                       "data.train: 2 of 5 rows (prompt_completion), 13 tokens, 7 of them learnt"));
}

TEST_F(InstructionSetTest, LongRowsAreCutOrRefusedAsAsked) {
  const std::string text =
      "{\"prompt\":\"ask\",\"completion\":\"0123456789abcdef\"}\n{\"prompt\":\"0123456789abcdef\",\"completion\":\"x\"}\n";
  DataSpec cut = spec(8);
  cut.overlong = DataSpec::Overlong::truncate;
  const Result r = read(text, cut);
  ASSERT_EQ(r.kept.size(), 1);
  EXPECT_EQ(shown(r.kept, 0), "<s>ask[0123]");
  EXPECT_EQ(r.counts.truncated, 1);
  EXPECT_EQ(r.counts.dropped.at("nothing in it is learnt").rows, 1);
  DataSpec error = spec(8);
  error.overlong = DataSpec::Overlong::error;
  EXPECT_TRUE(contains(
      error_of([&] { read(text, error); }),
      "rows.jsonl:1] it is longer than data.sequence_len: 21 tokens, 8 fit; raise data.sequence_len"));
  DataSpec strict = spec();
  strict.strict = true;
  EXPECT_TRUE(contains(error_of([&] { read("{\"text\":\"a\"}\n{\"text\":\"\"}\n", strict); }),
                       "rows.jsonl:2] `text` is empty; mend the row"));
}

TEST_F(InstructionSetTest, InputsAreLearntWhereTheRecipeSaysSo) {
  DataSpec all = spec();
  all.train_on_inputs = true;
  EXPECT_EQ(shown(read("{\"prompt\":\"ask\",\"completion\":\"say\"}", all).kept, 0), "<s>[asksay</s>]");
}

TEST_F(InstructionSetTest, TextAndSegmentsAndTokensNeedNoTemplate) {
  EXPECT_EQ(shown(read("{\"text\":\"hello\"}", spec()).kept, 0), "<s>[hello</s>]");
  EXPECT_EQ(
      shown(
          read(
              R"({"segments":[{"label":false,"text":"q"},{"label":true,"text":"a"},{"label":false,"text":"."}]})",
              spec())
              .kept,
          0),
      "<s>q[a].");
  EXPECT_EQ(shown(read(R"({"input_ids":[65,66,67,68],"labels":[65,-100,67,68]})", spec()).kept, 0), "AB[CD]");
  EXPECT_EQ(
      read(R"({"input_ids":[65,999]})", spec()).counts.dropped.at("a token is outside the vocabulary").rows,
      1);
}

TEST_F(InstructionSetTest, ThreadsChangeNothingAndAFractionIsHeldOut) {
  std::string text;
  for (int i = 0; i < 9000; ++i)
    text += i % 7 == 0 ? "{}\n" : fmt::format("{{\"prompt\":\"p{}\",\"completion\":\"c\"}}\n", i);
  text = "{\"prompt\":\"p\",\"completion\":\"c\"}\n" + text;
  DataSpec held = spec();
  held.validation_fraction = 0.1;
  const Result one = read(text, held, 1), three = read(text, held, 3);
  ASSERT_EQ(one.kept.size(), three.kept.size());
  for (int64_t i = 0; i < one.kept.size(); ++i) ASSERT_EQ(shown(one.kept, i), shown(three.kept, i));
  EXPECT_EQ(one.counts.dropped.begin()->second.first, three.counts.dropped.begin()->second.first);
  EXPECT_EQ(one.counts.rows, 9001);
  EXPECT_EQ(one.counts.kept + one.counts.held_out + one.counts.dropped.begin()->second.rows, 9001);
  EXPECT_NEAR(static_cast<double>(one.counts.held_out) / 7714, 0.1, 0.02);
}

TEST_F(InstructionSetTest, DataWithoutAUsableRowSayWhy) {
  const std::string path = (dir_ / "bad.jsonl").string();
  DataSpec bad = spec();
  bad.tokenizer = "bytes";
  bad.train = {{.path = path}};
  const auto open = [&](const std::string& text) {
    spill(path, text);
    return error_of([&] { open_instructions(bad, make_bytes_tokenizer(), {.vocab_size = 257}); });
  };
  EXPECT_TRUE(contains(open("{\"text\":\"\"}\n"),
                       "data.train holds no row that can be used, of 1; 1 because `text` is empty ("));
  EXPECT_TRUE(contains(open(""), "data.train holds no row that can be used, of 0"));
  EXPECT_TRUE(contains(open("{\"text\":\"a\"}\n{\"prompt\":\"b\",\"completion\":\"c\"}\n"),
                       "bad.jsonl:2] this row is of format"));
  bad.train = {{.path = (dir_ / "none-*.jsonl").string()}};
  EXPECT_TRUE(contains(open(""), "no file matches"));
}

}  // namespace
}  // namespace osprey
