#include "framework/files/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace osprey {
namespace {

TEST(Utf8, OnlyWellFormedTextPasses) {
  for (const char* good : {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                           "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
    EXPECT_FALSE(find_malformed_utf8(good).has_value()) << good;
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe2\x82",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x82\x41"})
    EXPECT_EQ(find_malformed_utf8(std::string("ok") + bad), std::optional<size_t>(2));
}

TEST(Utf8, LengthsOfCharactersAndZeroForWhatIsNone) {
  const std::string text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\xa6\x85\xe2";
  EXPECT_EQ(utf8_length(text, 0), 1u);
  EXPECT_EQ(utf8_length(text, 1), 2u);
  EXPECT_EQ(utf8_length(text, 2), 0u) << "the middle of a character";
  EXPECT_EQ(utf8_length(text, 3), 3u);
  EXPECT_EQ(utf8_length(text, 6), 4u);
  EXPECT_EQ(utf8_length(text, 10), 0u) << "cut off";
}

}  // namespace
}  // namespace osprey
