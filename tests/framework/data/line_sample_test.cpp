#include "framework/data/line_sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace osprey {
namespace {

TEST(LineSample, FewLinesAreAllKept) {
  LineSample sample(10, 100, 1);
  sample.add("a\n\nb\nc");
  EXPECT_EQ(sample.take(), (std::vector<std::string>{"a", "b", "c"}));
}

TEST(LineSample, ManyLinesAreDrawnEvenly) {
  // Every tenth of 20000 lines gives about a tenth of the sample.
  LineSample sample(2000, 100, 1);
  for (int i = 0; i < 20000; ++i) sample.add(std::to_string(i));
  const auto lines = sample.take();
  ASSERT_EQ(lines.size(), 2000u);
  std::vector<int> tenths(10);
  for (const auto& line : lines) ++tenths[static_cast<size_t>(std::stoi(line) / 2000)];
  for (const int count : tenths) EXPECT_NEAR(count, 200, 55);  // four standard deviations
  LineSample again(2000, 100, 1), other(2000, 100, 2);
  for (int i = 0; i < 20000; ++i) {
    again.add(std::to_string(i));
    other.add(std::to_string(i));
  }
  EXPECT_EQ(again.take(), lines);
  EXPECT_NE(other.take(), lines);
}

TEST(LineSample, LongLinesAreCutAtSpacesElseBetweenCharacters) {
  LineSample sample(100, 10, 1);
  sample.add("one two three four");
  EXPECT_EQ(sample.take(), (std::vector<std::string>{"one two", " three", " four"}));
  LineSample dense(100, 5, 1);
  dense.add("\xc3\xa7\xc3\xa7\xc3\xa7\xc3\xa7");
  EXPECT_EQ(dense.take(), (std::vector<std::string>{"\xc3\xa7\xc3\xa7", "\xc3\xa7\xc3\xa7"}));
}

}  // namespace
}  // namespace osprey
