#include "framework/data/json_records.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/fuzz.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using test::refusal;

std::vector<std::pair<int64_t, std::string>> rows(const std::string& bytes) {
  JsonRecords records(bytes, "f");
  std::vector<std::pair<int64_t, std::string>> all;
  for (JsonRecord r; records.next(r);) all.emplace_back(r.line, r.text);
  return all;
}
using Rows = std::vector<std::pair<int64_t, std::string>>;

TEST(JsonRecords, ALineIsARowWhateverItsEnd) {
  EXPECT_EQ(rows("\xef\xbb\xbf{\"a\":1}\r\n\r\n  \n{\"b\":2}"), (Rows{{1, "{\"a\":1}"}, {4, "{\"b\":2}"}}));
  EXPECT_EQ(rows(""), Rows{});
  EXPECT_EQ(rows("\n \r\n"), Rows{});
}

TEST(JsonRecords, AnElementOfAnArrayIsARow) {
  EXPECT_EQ(rows("[\n  {\"a\": [1, 2]},\n\n  {\"b\": \"],{\\\"\"}\n]\n"),
            (Rows{{2, "{\"a\": [1, 2]}"}, {4, "{\"b\": \"],{\\\"\"}"}}));
  EXPECT_EQ(rows(" []"), Rows{});
}

TEST(JsonRecords, AnArrayThatIsNotClosedOrFollowedByMoreIsRefused) {
  EXPECT_NE(refusal([] { rows("[{\"a\":1},\n{\"b\""); }).find("[f:2] the array is not closed"),
            std::string::npos);
  EXPECT_NE(refusal([] { rows("[1]\n[2]"); }).find("[f:2] something follows the array"), std::string::npos);
}

TEST(JsonRecords, HalfCharactersAreMended) {
  std::string scratch;
  EXPECT_EQ(mend_surrogates(R"("\ud83d\ude00 \ud83d \ude00 \\ud83d \u00e9")", scratch),
            R"("\ud83d\ude00 \ufffd \ufffd \\ud83d \u00e9")");
  EXPECT_EQ(mend_surrogates(R"("\ud83d)", scratch), R"("\ufffd)");
  EXPECT_EQ(mend_surrogates("\"\\", scratch), "\"\\");
}

TEST(JsonRecords, AnyBytesAreCutOrRefused) {
  const auto count = test::fuzz({"[{\"a\": \"\\\"]\"}, 2, [3, {}]]", "{\"a\":1}\n{\"b\":2}\n"},
                                {"[", "]", "\"", "\\", ",\n"}, [](const std::string& input) {
                                  size_t bytes = 0;
                                  for (const auto& [line, text] : rows(input)) bytes += text.size();
                                  ASSERT_LE(bytes, input.size());
                                });
  EXPECT_GT(count.accepted, 0);
  EXPECT_GT(count.refused, 0);
}

}  // namespace
}  // namespace osprey
