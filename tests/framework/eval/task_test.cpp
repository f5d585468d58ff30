#include "framework/eval/task.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/framework/data/data_support.h"
#include "tests/support/fuzz.h"
#include "tests/support/temp_dir.h"

namespace osprey {
namespace {

Task read_text(const std::string& text) {
  test::TempDir dir;
  spill((dir / "task.jsonl").string(), text);
  return read_task(dir / "task.jsonl");
}

TEST(Task, RowsAreReadWhateverTheirKeysAreCalled) {
  const Task task = read_text(
      "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n\n"
      "{\"question\": \"q2\", \"choices\": [\"a\", \"b\", \"c\"], \"answer\": \"C\", \"subject\": 7}\r\n"
      "{\"prompt\": \"q3\", \"choices\": [\"a\", \"b\"], \"answer\": \"0\"}");
  ASSERT_EQ(task.rows.size(), 3u);
  EXPECT_EQ(task.kind, Task::Kind::multiple_choice);
  EXPECT_EQ(task.rows[0].gold, 1u);
  EXPECT_EQ(task.rows[1].gold, 2u);
  EXPECT_EQ(task.rows[1].query, "q2");
  EXPECT_EQ(task.rows[1].line, 3);
  EXPECT_EQ(task.rows[2].gold, 0u);
  const Task texts = read_text("{\"prompt\": \"The\", \"completion\": \" osprey\"}\n");
  EXPECT_EQ(texts.kind, Task::Kind::continuation);
  EXPECT_EQ(texts.rows[0].choices[0], " osprey");
}

TEST(Task, WrongRowsAreNamedByLine) {
  const auto refused = [](const std::string& row, const std::string& words) {
    const std::string said =
        error_of([&] { read_text("{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n" + row); });
    EXPECT_TRUE(contains(said, words) && contains(said, "task.jsonl:2")) << said;
  };
  refused("{", "not valid JSON");
  refused("[]", "no JSON object");
  refused("{\"choices\": [\"a\", \"b\"], \"gold\": 1}", "has no `query`");
  refused("{\"query\": 1, \"choices\": [\"a\", \"b\"], \"gold\": 1}", "the query is 1, expected text");
  refused("{\"query\": \"q\", \"prompt\": \"q\"}", "has both `query` and `prompt`");
  refused("{\"query\": \"q\"}", "neither `choices` nor a `completion`");
  refused("{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"completion\": \"c\"}", "both `choices` and");
  refused("{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}", "fewer than two choices");
  refused("{\"query\": \"q\", \"choices\": [\"a\", 2], \"gold\": 0}", "a choice is 2");
  refused("{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "an empty choice");
  refused("{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}", "no `gold`");
  for (const char* gold : {"2", "-1", "\"C\"", "\"\"", "\"AB\"", "1.5", "null", "18446744073709551615"})
    refused(std::string("{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": ") + gold + "}",
            "none of the 2 choices");
  refused("{\"query\": \"q\", \"completion\": \"c\"}", "put each kind into a file of its own");
  refused("{\"query\": \"\xff\", \"choices\": [\"a\", \"b\"], \"gold\": 1}", "not UTF-8");
  EXPECT_TRUE(contains(error_of([] { read_text("\n \n"); }), "holds no row"));
}

TEST(TaskFuzz, HostileFilesAreRefusedOrRead) {
  const auto count = test::fuzz({"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n",
                                 "{\"prompt\": \"q\", \"completion\": \"c\"}\n"},
                                {"\"choices\"", "\"gold\"", "null", "-1", "1e99", "[[", "\n", "\"B\""},
                                [](const std::string& text) { read_text(text); });
  EXPECT_GT(count.refused, 0);
  EXPECT_GT(count.accepted, 0);
}

TEST(Task, ShotsAreOtherRowsDrawnBySeed) {
  std::string text;
  for (int i = 0; i < 9; ++i)
    text += "{\"query\": \"q" + std::to_string(i) + "\", \"choices\": [\"x\", \"y" + std::to_string(i) +
            "\"], \"gold\": 1}\n";
  const Task task = read_text(text);
  std::set<std::string> firsts;
  for (const TaskRow& row : task.rows) {
    const std::string context = context_of(row, task.rows, &row, {.shots = 3, .seed = 5});
    EXPECT_EQ(context, context_of(row, task.rows, &row, {.shots = 3, .seed = 5}));
    EXPECT_TRUE(context.ends_with("\n\n" + row.query));
    EXPECT_FALSE(contains(context, row.query + " ")) << "a row is its own example";
    EXPECT_EQ(std::count(context.begin(), context.end(), '\n'), 6);
    firsts.insert(context.substr(0, context.find('\n')));
  }
  EXPECT_GT(firsts.size(), 2u);
  const TaskRow& row = task.rows[0];
  EXPECT_EQ(context_of(row, task.rows, &row, {}), "q0");
  // All eight others are there, each once; a ninth is not.
  const std::string all = context_of(row, task.rows, &row, {.shots = 8});
  for (int i = 1; i < 9; ++i) EXPECT_TRUE(contains(all, "q" + std::to_string(i) + " y" + std::to_string(i)));
  EXPECT_TRUE(contains(error_of([&] { context_of(row, task.rows, &row, {.shots = 9}); }), "more than the 8"));
  EXPECT_NO_THROW(context_of(row, task.rows, nullptr, {.shots = 9}));
}

TEST(Task, ContextAndContinuationAreEncodedAsOneText) {
  EXPECT_EQ(continuation_of("a", "b"), " b");
  EXPECT_EQ(continuation_of("a\n", "b"), "b");
  EXPECT_EQ(continuation_of("a", " b"), " b");
  EXPECT_EQ(continuation_of("", "b"), "b");
  const auto bytes = make_bytes_tokenizer();
  const EncodedPair pair = encode_pair(*bytes, "a: ", "bc");  // the space goes to the continuation
  EXPECT_EQ(pair.tokens, (std::vector<int32_t>{'a', ':', ' ', 'b', 'c'}));
  EXPECT_EQ(pair.scored, 3);
  const EncodedPair alone = encode_pair(*bytes, "", "b");
  EXPECT_EQ(alone.tokens, (std::vector<int32_t>{256, 'b'}));
  EXPECT_EQ(alone.scored, 1);
}

TEST(Task, ScoresAreThoseOfTheHarness) {
  const Task task = read_text(
      "{\"query\": \"q\", \"choices\": [\"ab\", \"abcdefgh\"], \"gold\": 0}\n"
      "{\"query\": \"q\", \"choices\": [\"a\", \"bb\"], \"gold\": 1}\n"
      "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0}\n");
  //                                  plain: 0 (right); by byte: -1 and -.5: 1 (wrong)
  const std::vector<double> sums = {-2, -4, -1, -1.5, -3, -1};
  //                                               plain: 0 (wrong); by byte: 1 (right). Third: wrong both
  //                                               ways.
  const TaskScores s = score_task(task, sums, std::vector<int64_t>{1, 4, 1, 2, 1, 1});
  EXPECT_DOUBLE_EQ(s.accuracy.value, 1.0 / 3);
  EXPECT_DOUBLE_EQ(s.accuracy.standard_error, std::sqrt(1.0 / 3 * 2 / 3 / 2));
  EXPECT_DOUBLE_EQ(s.accuracy_normalized.value, 1.0 / 3);
  EXPECT_DOUBLE_EQ(s.loss.value, (2 + 0.75 + 3) / 3);
  EXPECT_DOUBLE_EQ(s.bits_per_byte, (2 + 1.5 + 3) / 5 / std::log(2.0));
}

}  // namespace
}  // namespace osprey
